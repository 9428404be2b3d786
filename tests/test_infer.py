"""The evaluation, its report, predictions for people, heat maps and comparisons."""

from __future__ import annotations

import csv
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from scipy.special import logit

from fracture.data.images import UNREADABLE, load_image, read_grey
from fracture.data.manifest import Row, read_manifest, read_split, write_manifest
from fracture.evaluation.cam import heat_maps, in_frame, inside, localisation, overlay, read_boxes
from fracture.evaluation.compare import read_tested
from fracture.evaluation.metrics import choose_thresholds
from fracture.evaluation.test_set import evaluate_test
from fracture.models.backbone import build_backbone
from fracture.models.classifier import Classifier, restore
from tests.conftest import run_script

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def classifier(workplace: Path) -> Classifier:
    checkpoint = torch.load(workplace / "runs" / "first" / "best.pt", weights_only=True)
    return restore(checkpoint, "imagenet", "float32")


@pytest.fixture(scope="module")
def films(workplace: Path) -> list[Path]:
    return sorted((workplace / "data" / "split" / "test").glob("*/*"))


@pytest.fixture(scope="module")
def results(workplace: Path) -> dict:
    return json.loads((workplace / "runs" / "first" / "test" / "metrics.json").read_text())


def test_temperature_and_thresholds_come_from_the_validation_images(
    workplace: Path, classifier: Classifier
) -> None:
    val = read_split(workplace / "data" / "split", "val")
    backbone = build_backbone(classifier.recipe.backbone, 224, classifier.recipe.weights)
    images = [load_image((val.folder / r.place).read_bytes(), 224, "squash") for r in val.rows]
    p = classifier.p_positive(backbone(torch.from_numpy(np.stack(images))))
    is_positive = np.array([row.label == "Fractured" for row in val.rows])
    assert classifier.thresholds == pytest.approx(choose_thresholds(is_positive, p), abs=1e-4)


def test_test_images_choose_nothing(workplace: Path, results: dict) -> None:
    """With every test label turned round, all figures change but no threshold does."""
    run = workplace / "runs" / "turned"
    shutil.copytree(workplace / "runs" / "first", run)
    split = workplace / "turned"
    shutil.copytree(workplace / "data" / "split", split)
    other = {"Fractured": "Non_fractured", "Non_fractured": "Fractured"}
    (split / "test").rename(split / "test-before")
    for path in (split / "test-before").glob("*/*"):
        target = split / "test" / other[path.parent.name] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(split / "test-before")
    write_manifest(
        split,
        [
            replace(row, label=other[row.label]) if row.split == "test" else row
            for row in read_manifest(split)[0]
        ],
    )
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    checkpoint["manifest_sha256"] = read_split(split, "test").sha256
    torch.save(checkpoint, run / "best.pt")
    done = run_script(workplace, "infer.py", "--run", "turned", "--split_dir", "turned")
    assert done.returncode == 0, done.stderr
    turned = json.loads((run / "test" / "metrics.json").read_text())
    assert turned["accuracy"]["value"] == pytest.approx(1 - results["accuracy"]["value"])
    assert turned["calibration"]["temperature"] == results["calibration"]["temperature"]
    for name, point in results["operating_points"].items():
        assert turned["operating_points"][name]["threshold"] == point["threshold"]


def made_up(classifier: Classifier, count: int = 400) -> tuple[list[Row], np.ndarray]:
    rng = np.random.default_rng(0)
    parts, views = ("hand", "leg", "hip"), ("frontal", "lateral", "frontal lateral")
    rows = [
        Row(
            f"{i}.jpg",
            ("Non_fractured", "Fractured")[int(rng.random() < 0.1 + 0.3 * (i % 3 == 0))],
            "test",
            f"g{i // 2}",
            "",
            "",
            f"{parts[i % 3]}{' hardware' * (i % 40 == 0)} {views[i % 2 + (i % 50 == 0)]}",
        )
        for i in range(count)
    ]
    truth = np.array([row.label == classifier.positive for row in rows])
    return rows, logit(np.clip(rng.beta(2 + truth, 3, count), 0.001, 0.999))


def test_subgroups_have_their_own_images_and_no_auc_on_few(classifier: Classifier) -> None:
    rows, margin = made_up(classifier)
    found = evaluate_test(classifier, margin, rows, rows, np.full(len(rows), 10_000))
    groups = {group["name"]: group for group in found["subgroups"]}
    for prefix in ("body part", "view", "hardware", "file"):
        of_kind = [group for name, group in groups.items() if name.startswith(prefix)]
        assert sum(group["n"] for group in of_kind) == len(rows)
        assert sum(group["positives"] for group in of_kind) == found["sensitivity"]["n"]
    assert groups["hardware: yes"]["n"] == 10
    assert "roc_auc" not in groups["hardware: yes"]
    assert groups["body part: hand"]["roc_auc"]["n"] == 134
    alone = evaluate_test(classifier, margin[::3], rows[::3], rows, np.full(len(rows[::3]), 10_000))
    assert groups["body part: hand"]["sensitivity"] == alone["sensitivity"]
    assert groups["body part: hand"]["roc_auc"]["value"] == alone["roc_auc"]["value"]


def test_the_baselines_see_no_image_and_no_test_label(classifier: Classifier) -> None:
    rows, margin = made_up(classifier)
    sizes = np.full(len(rows), 10_000)
    baselines = evaluate_test(classifier, margin, rows, rows, sizes)["baselines"]
    assert baselines == evaluate_test(classifier, -margin, rows, rows, sizes)["baselines"]
    assert baselines["body part and view"]["roc_auc"]["value"] > 0.6  # hands break more often here
    share = np.mean([row.label == "Non_fractured" for row in rows])
    assert baselines["majority"]["accuracy"]["value"] == pytest.approx(share)
    bare = [replace(row, traits="") for row in rows]
    assert evaluate_test(classifier, margin, bare, bare, sizes)["baselines"].keys() == {"majority"}


class References(html.parser.HTMLParser):
    """Every address that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_report_holds_all_that_it_shows(workplace: Path, results: dict) -> None:
    page = (workplace / "runs" / "first" / "test" / "report.html").read_text()
    references = References()
    references.feed(page)
    assert len(references.found) >= 8
    assert all(address.startswith("data:") for address in references.found)
    assert not re.search(r"url\(|@import|<script", page)
    for told in (f"{results['accuracy']['value']:.3f}", "not patient-level", "Research use only"):
        assert told in page
    assert results["manifest_sha256"] in page
    plots = {path.stem for path in (workplace / "runs/first/test/plots").glob("*.png")}
    assert plots >= {"roc", "precision_recall", "reliability", "confusion", "training"}


@pytest.mark.parametrize("width", [390, 1000])
def test_a_browser_shows_the_report_whole(workplace: Path, tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("needs chromium")
    page = (workplace / "runs" / "first" / "test" / "report.html").read_text()
    probe = """<script>onload = () => { const all = [...document.images];
      document.title = `${all.length} images, ${all.filter(i => !i.naturalWidth).length} broken, ` +
        `${document.documentElement.scrollWidth - innerWidth} too wide` }</script>"""
    (tmp_path / "page.html").write_text(page + probe)
    quiet = "headless no-sandbox disable-gpu no-first-run disable-background-networking"
    flags = [f"--{flag}" for flag in [*quiet.split(), f"user-data-dir={tmp_path}/profile"]]
    flags += [f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom"]
    address = (tmp_path / "page.html").as_uri()
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=60)
    title = re.search(r"<title>(\d+) images, (\d+) broken, (-?\d+) too wide", done.stdout)
    assert title, done.stderr
    assert int(title[1]) >= 8
    assert (int(title[2]), max(0, int(title[3]))) == (0, 0)
    assert "CONSOLE" not in done.stderr


def test_a_heat_map_averages_to_the_margin(classifier: Classifier, films: list[Path]) -> None:
    """The map is the prediction taken apart: its mean over the pixels is the image's logit."""
    backbone = build_backbone(classifier.recipe.backbone, 224, classifier.recipe.weights)
    image = torch.from_numpy(load_image(films[0].read_bytes(), 224, "squash"))[None]
    heat = classifier.heat(backbone, image)[0]
    assert heat.shape == (7, 7)
    margin = classifier.margin(backbone(image))[0]
    assert heat.mean() * classifier.temperature == pytest.approx(margin, abs=1e-3)


def test_a_heat_map_lies_in_the_films_own_frame(classifier: Classifier, films: list[Path]) -> None:
    (heat,) = heat_maps(classifier, films[:1])
    width, height = read_grey(films[0].read_bytes()).size
    assert heat.shape == (height, width)
    assert overlay(films[0], heat).size == (width, height)
    spot = np.zeros((7, 7))
    spot[1, 5] = 1  # row 1, column 5 of 7: upper right
    for size in ((300, 500), (500, 300)):
        y, x = np.unravel_index(in_frame(spot, size, "squash").argmax(), size[::-1])
        assert (x / size[0], y / size[1]) == pytest.approx((5.5 / 7, 1.5 / 7), abs=0.01)
    y, x = np.unravel_index(in_frame(spot, (500, 300), "letterbox").argmax(), (300, 500))
    assert (x, y) == pytest.approx((500 * 5.5 / 7, 500 * 1.5 / 7 - 100), abs=5)


def test_boxes_are_read_in_the_films_frame_whatever_its_size(tmp_path: Path) -> None:
    folder = tmp_path / "Annotations" / "COCO JSON"
    folder.mkdir(parents=True)
    image = {"id": 7, "file_name": "a.jpg", "width": 2000, "height": 1000}
    boxes = [{"image_id": 7, "bbox": [500, 250, 500, 250]}]
    content = json.dumps({"images": [image], "annotations": boxes})
    (folder / "COCO_fracture_masks.json").write_text(content)
    assert read_boxes(tmp_path) == {"a.jpg": [(0.25, 0.25, 0.5, 0.5)]}
    assert read_boxes(tmp_path / "elsewhere") == {}
    mask = inside([(0.25, 0.25, 0.5, 0.5)], (8, 4))
    assert mask.sum() == 2
    assert mask[2:4, 1].all()


def test_localisation_is_scored_beside_chance() -> None:
    heat = np.full((10, 10), 0.1)
    heat[1, 1] = 0.9
    boxes = {"hit": [(0.0, 0.0, 0.2, 0.2)], "miss": [(0.8, 0.8, 1.0, 1.0)]}
    heat = logit(heat)
    found = localisation({"hit": heat, "miss": heat}, boxes)
    assert found["pointing_game"]["map"]["value"] == 0.5
    assert found["pointing_game"]["uniform"]["value"] == pytest.approx(0.04)
    assert found["energy_in_box"]["map"]["value"] == pytest.approx((1.2 + 0.4) / 10.8 / 2)
    assert found["pointing_game"]["centred blob"]["value"] == 0


def test_real_boxes_fit_their_films(real: Path) -> None:
    boxes = read_boxes(real)
    assert len(boxes) >= 700
    assert all(
        0 <= left < right <= 1.001 and 0 <= top < low <= 1.001
        for some in boxes.values()
        for left, top, right, low in some
    )


def test_predictions_go_to_files_as_they_are_printed(
    workplace: Path, films: list[Path], tmp_path: Path
) -> None:
    (workplace / "bad.jpg").write_text("no image")
    given = (str(films[0]), "bad.jpg", str(films[1]))
    arguments = (*given, "--at", "sensitivity90", "--heatmaps", str(tmp_path / "heat"))
    done = run_script(workplace, "infer.py", *arguments, "--out", str(tmp_path / "x.csv"))
    assert done.returncode == 0, done.stderr
    assert (
        run_script(workplace, "infer.py", *given, "--out", str(tmp_path / "x.json")).returncode == 0
    )
    with (tmp_path / "x.csv").open() as file:
        table = [*csv.DictReader(file)]
    listed = json.loads((tmp_path / "x.json").read_text())
    assert [line["file"] for line in table] == [line["file"] for line in listed] == [*given]
    assert table[1]["note"] == listed[1]["note"] == "unreadable: not an image"
    assert (table[1]["p_fractured"], listed[1]["p_fractured"]) == ("", None)
    for line, same in zip(table[::2], listed[::2], strict=True):
        assert float(line["p_fractured"]) == same["p_fractured"]
        assert f"{same['p_fractured']:.4f}" in done.stdout
    with Image.open(tmp_path / "heat" / f"0002-{films[1].stem}.png") as picture:
        assert picture.size == read_grey(films[1].read_bytes()).size
    refused = run_script(workplace, "infer.py", *given, "--out", "x.txt")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_the_operating_point_decides(classifier: Classifier) -> None:
    low, high = sorted([classifier.thresholds["protocol"], 0.3])
    between = replace(classifier, thresholds={"protocol": high, "youden": low})
    p = (low + high) / 2
    assert between.decide(p, "youden") == "Fractured"
    assert between.decide(p, "protocol") == "Non_fractured"
    assert between.decide(low, "youden") == "Fractured"


def test_a_dicom_film_is_shown_as_meant(tmp_path: Path) -> None:
    film = pydicom.dcmread(DICOM / "CT_small.dcm")
    film.WindowCenter, film.WindowWidth = 40, 400
    film.save_as(tmp_path / "soft.dcm")
    grey = np.asarray(read_grey((tmp_path / "soft.dcm").read_bytes()), dtype=float)
    hounsfield = film.pixel_array * film.RescaleSlope + film.RescaleIntercept
    expected = np.clip((hounsfield - 40 + 0.5) / 399 + 0.5, 0, 1) * 255
    spread = expected.max() - expected.min()
    assert np.abs(grey - (expected - expected.min()) / spread * 255).max() <= 1.5
    film.PhotometricInterpretation = "MONOCHROME1"
    film.save_as(tmp_path / "inverted.dcm")
    inverted = np.asarray(read_grey((tmp_path / "inverted.dcm").read_bytes()), dtype=float)
    assert np.abs(inverted + grey - 255).max() <= 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("examples_ybr_color.dcm", "30 frames"),
        ("rtplan.dcm", "damaged|no"),
        ("examples_rgb_color.dcm", "RGB"),
    ],
)
def test_other_dicom_files_are_refused_with_a_word(name: str, reason: str) -> None:
    with pytest.raises(UNREADABLE, match=reason):
        read_grey((DICOM / name).read_bytes())


def test_every_dicom_file_is_read_or_refused() -> None:
    outcomes = []
    for path in DICOM.glob("*.dcm"):
        try:
            outcomes.append(read_grey(path.read_bytes()).mode)
        except UNREADABLE:
            outcomes.append("refused")
    assert len(outcomes) > 40
    assert outcomes.count("L") >= 10
    assert set(outcomes) == {"L", "refused"}


def test_a_run_compared_with_itself_differs_by_nothing(workplace: Path) -> None:
    done = run_script(workplace, "infer.py", "--compare", "first", "first")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0.000 (0.000 to 0.000)") >= 9
    assert "McNemar's exact p = 1.000" in done.stdout


def test_a_worse_run_is_told_apart(workplace: Path) -> None:
    worse = workplace / "runs" / "worse"
    shutil.copytree(workplace / "runs" / "first", worse)
    table, _ = read_tested(worse)
    rng = np.random.default_rng(0)
    with (worse / "test" / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "group", "label", "p_fractured", "predicted", "note"])
        for image, (truth, _, group) in table.items():
            label = "Fractured" if truth else "Non_fractured"
            writer.writerow([image, group, label, f"{rng.random():.8f}", "", ""])
    changed = run_script(workplace, "infer.py", "--compare", "first", "worse")
    assert (changed.returncode, "predictions.csv has changed" in changed.stderr) == (2, True)
    digest = hashlib.sha256((worse / "test" / "predictions.csv").read_bytes()).hexdigest()
    metrics = json.loads((worse / "test" / "metrics.json").read_text())
    metrics["predictions_sha256"] = digest
    (worse / "test" / "metrics.json").write_text(json.dumps(metrics))
    done = run_script(workplace, "infer.py", "--compare", "first", "worse")
    assert done.returncode == 0, done.stderr
    auc = next(line for line in done.stdout.splitlines() if line.startswith("ROC-AUC"))
    first, second = (float(cell) for cell in auc.split()[1:3])
    assert f"{first - second:.3f} (" in auc


def test_runs_of_other_splits_or_untested_are_not_compared(workplace: Path) -> None:
    foreign = workplace / "runs" / "foreign"
    shutil.copytree(workplace / "runs" / "first", foreign)
    metrics = json.loads((foreign / "test" / "metrics.json").read_text())
    metrics["manifest_sha256"] = "0" * 64
    (foreign / "test" / "metrics.json").write_text(json.dumps(metrics))
    refused = run_script(workplace, "infer.py", "--compare", "first", "foreign")
    assert (refused.returncode, "same split" in refused.stderr) == (2, True)
    shutil.rmtree(foreign / "test")
    untested = run_script(workplace, "infer.py", "--compare", "first", "foreign")
    assert (untested.returncode, "infer.py --run foreign" in untested.stderr) == (2, True)


def test_folds_are_pooled_only_if_each_image_is_tested_once(workplace: Path) -> None:
    once = run_script(workplace, "infer.py", "--pool", "first")
    assert once.returncode == 0, once.stderr
    assert "each image predicted by a model that never saw it" in once.stdout
    twice = run_script(workplace, "infer.py", "--pool", "first", "first")
    assert (twice.returncode, "not folds" in twice.stderr) == (2, True)
