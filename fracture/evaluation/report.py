"""The test results as metrics.json, plots, and one HTML page that needs nothing else."""

import base64
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import jinja2
from PIL import Image

from fracture.data.manifest import SPLITS, Row, read_manifest
from fracture.evaluation.plots import draw_plots
from fracture.evaluation.pointing import Pictures
from fracture.evaluation.test_set import TITLES, as_text
from fracture.features.extract import FeatureSet
from fracture.runs.trained import TrainedRun
from fracture.settings import read_config

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    folder: Path,
    run: TrainedRun,
    images: FeatureSet,
    results: dict,
    pictures: Pictures,
    split_dir: Path,
) -> None:
    """Write metrics.json, plots/*.png and report.html.

    Args:
        folder: of the test results.
        run: the tested run.
        images: the test images.
        results: the content of metrics.json.
        pictures: from `explain_test`.
        split_dir: of the run's split.
    """
    (folder / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    plots = folder / "plots"
    plots.mkdir()
    for name, figure in draw_plots(run, images, results).items():
        figure.savefig(plots / f"{name}.png")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals = {"titles": TITLES, "text": as_text, "data_uri": data_uri}
    flow = image_flow(read_manifest(split_dir)[0])
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    patients = bool(read_config(split_dir / "config.yaml").groups)
    page = template.render(
        results=results, run=run, plots=plots, pictures=pictures, flow=flow, patients=patients
    )
    # backslashreplace: file names need not be valid text
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def data_uri(image: Image.Image | Path) -> str:
    """A PNG file, or an image as JPEG, inside the page itself."""
    if isinstance(image, Path):
        return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def image_flow(rows: list[Row]) -> dict[str, Counter]:
    """Counts of images by class: found, excluded by reason, and kept by split."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        reason = row.reason.partition(" ")[0].strip(":")
        part = f"excluded: {reason}" if row.split == "excluded" else row.split
        counts["files found"][row.label] += 1
        counts[part][row.label] += 1
    excluded = sorted(counts.keys() - {"files found", *SPLITS})
    return {part: counts[part] for part in ("files found", *excluded, *SPLITS)}
