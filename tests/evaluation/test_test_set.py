"""A test set's results: nothing is chosen on it, and the numbers fit together."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import infer
import train
from fracture.data.manifest import read_manifest, write_manifest
from fracture.evaluation import test_set
from fracture.features.extract import FeatureSet
from tests.conftest import LITE, Capture
from tests.evaluation.conftest import CLASSES, JUDGE, image_set


def test_test_labels_choose_nothing(results: dict) -> None:
    """Train and test with all test labels flipped: no choice differs."""
    shutil.copytree("data/split", split := Path("flipped"))
    rows = read_manifest(split)[0]
    for i, row in enumerate(rows):
        if row.split == "test":
            rows[i] = replace(row, label=CLASSES[row.label == CLASSES[0]])
            (split / row.path).rename(split / rows[i].path)
    write_manifest(split, rows)
    train.main([*LITE, "--run", "flipped", "--split_dir", "flipped"])
    infer.main(["--run", "flipped", "--split_dir", "flipped"])
    flipped = json.loads(Path("runs/flipped/test/metrics.json").read_text())
    assert flipped["accuracy"]["value"] == pytest.approx(1 - results["accuracy"]["value"])
    assert flipped["best_epoch"] == results["best_epoch"]
    assert flipped["calibration"]["temperature"] == results["calibration"]["temperature"]
    for name, point in results["operating_points"].items():
        assert flipped["operating_points"][name]["threshold"] == point["threshold"]


@pytest.fixture
def images(tmp_path: Path) -> FeatureSet:
    """400 images of which hands are fractured more often; tmp_path has them as training images."""
    rng, is_hand = np.random.default_rng(1), np.arange(400) % 3 == 0
    truth = rng.random(400) < 0.1 + 0.3 * is_hand
    made = image_set(truth, rng.normal(2.0 * truth - 1, 2))
    for i, row in enumerate(made.rows):
        traits = f"{('hand', 'leg', 'hip')[i % 3]} {('frontal', 'lateral')[i % 2]}"
        traits += " hardware" * (i % 40 == 0)
        made.rows[i] = row = replace(row, split="train", traits=traits)
        (path := tmp_path / row.path).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(50_000 + (i % 4 == 0)))
    write_manifest(tmp_path, made.rows)
    return made


def test_intervals_hold_and_subgroups_add_up(images: FeatureSet, tmp_path: Path) -> None:
    found = test_set.evaluate_test(JUDGE, images, tmp_path)
    for metric in (found[name] for name in test_set.TITLES):
        assert metric.keys() == {"value", "low", "high", "n"}
        assert metric["low"] <= metric["value"] <= metric["high"]
    groups = {group["name"]: group for group in found["subgroups"]}
    for trait in ("body part", "view", "hardware", "file"):
        parts = [group for name, group in groups.items() if name.startswith(trait)]
        assert sum(group["n"] for group in parts) == found["accuracy"]["n"] == 400
        assert sum(group["positives"] for group in parts) == found["sensitivity"]["n"]
    for group in groups.values():
        few = min(group["positives"], group["n"] - group["positives"]) < 10
        assert ("roc_auc" not in group) == few
    assert "roc_auc" not in groups["hardware: yes"]


@pytest.mark.parametrize("flipped", [0, 1])
def test_baselines_see_no_test_label(images: FeatureSet, tmp_path: Path, flipped: int) -> None:
    truth, weights = (images.labels == flipped).numpy(), np.ones((9, 400), int)
    found = test_set.baselines(images.rows, tmp_path, truth, weights, CLASSES[0])
    assert found["majority"]["accuracy"]["value"] == (images.labels == 1 - flipped).numpy().mean()
    assert abs(flipped - found["body part and view"]["roc_auc"]["value"]) > 0.6


def test_the_table_of_predictions(images: FeatureSet, tmp_path: Path) -> None:
    row, p = images.rows[-1], JUDGE.p_positive(images.features)[-1]
    images.unreadable[replace(row, image="images/bad \udcff,.jpg")] = "cut off"
    digest = test_set.write_predictions(path := tmp_path / "predictions.csv", JUDGE, images)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    lines = path.read_bytes().decode("latin-1").splitlines()
    assert lines[0] == "image,group,label,p_fractured,predicted,note"
    assert lines[-2] == f"{row.image},{row.group},{row.label},{p:.8f},{CLASSES[int(p < 0.5)]},"
    assert lines[-1] == f'"images/bad \xff,.jpg",{row.group},{row.label},,,unreadable: cut off'


def test_the_results_are_printed_in_80_columns(results: dict, capsys: Capture) -> None:
    """But for the line of a baseline with two intervals."""
    infer.main(["--run", "first"])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if len(line) > 80 and ", ROC-AUC" not in line] == []
    for name, title in test_set.TITLES.items():
        assert f"\n{title:28}{test_set.as_text(results[name])}" in out
