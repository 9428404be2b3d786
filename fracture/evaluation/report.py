"""The test results as metrics.json, plots, and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from fracture.data.manifest import SPLITS, Row, read_manifest
from fracture.evaluation import plots
from fracture.evaluation.cam import Film
from fracture.evaluation.test_set import TITLES, as_text
from fracture.features.extract import FeatureSet
from fracture.models.classifier import Classifier
from fracture.runs.folder import read_history
from fracture.runs.trained import TrainedRun

TEMPLATE = Path(__file__).with_name("report.html")


def draw_plots(
    results: Mapping[str, Any],
    classifier: Classifier,
    images: FeatureSet,
    history: Sequence[dict[str, Any]],
) -> dict[str, Figure]:
    """Every plot by its name."""
    log_odds = classifier.log_odds(images.features)
    raw, p = expit(log_odds), expit(log_odds / classifier.temperature)
    is_positive = np.array([row.label == classifier.classes[0] for row in images.rows])
    groups = np.array([row.group for row in images.rows])
    return {
        "roc": plots.roc(is_positive, p, groups, classifier.thresholds),
        "precision_recall": plots.precision_recall(is_positive, p, groups),
        "reliability": plots.reliability(is_positive, raw, p),
        "probabilities": plots.histogram(is_positive, p, *classifier.classes),
        "confusion": plots.confusion(results["operating_points"], *classifier.classes),
        "training": plots.history(history),
        "subgroups": plots.forest(results["subgroups"], results),
    }


def data_uri(image: Image.Image | Path) -> str:
    if isinstance(image, Path):
        return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def image_flow(rows: Sequence[Row], classes: Sequence[str]) -> list[list[str]]:
    """Lines of the table of images: found, excluded by reason, and kept by split; by class."""

    def part(row: Row) -> str:
        excluded = row.split == "excluded"
        return f"excluded: {row.reason.split()[0].strip(':')}" if excluded else row.split

    counts = Counter((part(row), row.label) for row in rows)
    counts.update(("files found", row.label) for row in rows)
    excluded = sorted({name for name, _ in counts if name.startswith("excluded")})
    lines = []
    for name in ("files found", *excluded, *SPLITS):
        by_class = [counts[name, label] for label in classes]
        lines.append([name, *(f"{count:,}" for count in (sum(by_class), *by_class))])
    return lines


def write_report(
    folder: Path,
    run: TrainedRun,
    images: FeatureSet,
    results: Mapping[str, Any],
    films: Mapping[str, Sequence[Film]],
    split_dir: Path,
) -> None:
    """Write metrics.json, plots/*.png and report.html.

    Args:
        folder: of the test results.
        run: the tested run.
        images: the test images.
        results: the content of metrics.json.
        films: from `explain_test`.
        split_dir: of the run's split.
    """
    (folder / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "plots").mkdir()
    pictures = {}
    drawn = draw_plots(results, run.classifier, images, read_history(run.folder))
    for name, figure in drawn.items():
        path = folder / "plots" / f"{name}.png"
        figure.savefig(path)
        pictures[name] = data_uri(path)
    all_rows = read_manifest(split_dir)[0]
    classes = sorted({row.label for row in all_rows})
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        titles=TITLES,
        text=as_text,
        pictures=pictures,
        films={
            heading: [(name, p, data_uri(image)) for name, p, image in some]
            for heading, some in films.items()
        },
        classes=classes,
        flow=image_flow(all_rows, classes),
        settings=run.checkpoint["settings"],
    )
    # backslashreplace: file names need not be valid text
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
