"""The test results as one HTML page that needs nothing but itself, and its plots as PNG files."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fracture.data.manifest import SPLITS, Row
from fracture.evaluation import plots
from fracture.evaluation.metrics import calibrated
from fracture.models.classifier import Classifier

TEMPLATE = Path(__file__).with_name("report.html")
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def as_text(figure: Mapping[str, Any] | None) -> str:
    """A figure as "0.871 (0.834 to 0.901)"; a dash where it is undefined."""
    if not figure or figure["value"] is None:
        return "-"
    interval = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{interval}"


def print_table(figures: Mapping[str, Any]) -> None:
    """Print every figure of `TITLES` with its interval and n."""
    for name, title in TITLES.items():
        print(f"{title:28}{as_text(figures[name]):26}{figures[name]['n']:>6,} images")


def draw_plots(
    results: Mapping[str, Any],
    classifier: Classifier,
    margin: np.ndarray,
    rows: Sequence[Row],
    history: Sequence[dict[str, Any]],
) -> dict[str, Figure]:
    """Every plot by its name; curves only where both classes are present."""
    is_positive = np.array([row.label == classifier.positive for row in rows])
    groups = np.array([row.group for row in rows])
    before, p = calibrated(margin, 1), calibrated(margin, classifier.temperature)
    names = classifier.positive, classifier.negative
    drawn = {}
    if is_positive.any() and not is_positive.all():
        drawn["roc"] = plots.roc(is_positive, p, groups, classifier.thresholds)
        drawn["precision_recall"] = plots.precision_recall(is_positive, p, groups)
    return drawn | {
        "reliability": plots.reliability(is_positive, before, p),
        "probabilities": plots.histogram(is_positive, p, *names),
        "confusion": plots.confusion(results["operating_points"], *names),
        "training": plots.history(history),
        "subgroups": plots.forest(results["subgroups"], results),
    }


def data_uri(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def flow(rows: Sequence[Row], classes: Sequence[str]) -> list[list[str]]:
    """Lines of the table of images: excluded by reason, kept by split; each in all and by class."""
    places = Counter(
        (
            f"excluded: {row.reason.split()[0].strip(':')}"
            if row.split == "excluded"
            else row.split,
            row.label,
        )
        for row in rows
    )
    excluded = sorted({place for place, _ in places} - set(SPLITS))
    lines = []
    for place in (*excluded, *SPLITS):
        counts = [places[place, name] for name in classes]
        lines.append([place, *(f"{count:,}" for count in (sum(counts), *counts))])
    counts = [sum(row.label == name for row in rows) for name in classes]
    return [["files found", *(f"{count:,}" for count in (len(rows), *counts))], *lines]


def write_report(
    folder: Path,
    results: Mapping[str, Any],
    drawn: Mapping[str, Figure],
    films: Mapping[str, Sequence[tuple[str, float, Image.Image]]],
    all_rows: Sequence[Row],
    settings: Mapping[str, Any],
) -> None:
    """Write report.html and plots/*.png.

    Args:
        folder: of the test results.
        results: as in metrics.json.
        drawn: from `draw_plots`.
        films: by heading: file name, probability and overlay of films worth a look.
        all_rows: of the whole manifest.
        settings: of the run.
    """
    (folder / "plots").mkdir(exist_ok=True)
    pictures = {}
    for name, figure in drawn.items():
        path = folder / "plots" / f"{name}.png"
        figure.savefig(path)
        pictures[name] = data_uri(path)
    classes = sorted({row.label for row in all_rows})
    page = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    (folder / "report.html").write_text(
        page.render(
            results=results,
            titles=TITLES,
            text=as_text,
            pictures=pictures,
            films={
                heading: [(name, p, data_uri(image)) for name, p, image in some]
                for heading, some in films.items()
            },
            classes=classes,
            flow=flow(all_rows, classes),
            settings=settings,
        ),
        encoding="utf-8",
        errors="backslashreplace",  # file names need not be text
    )
