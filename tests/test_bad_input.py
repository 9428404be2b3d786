"""Bad images end as a counted and named exclusion: never as a traceback, a hang or a wrong number.

Bad settings are in test_bad_settings.py, bad splits and checkpoints in test_bad_runs.py.
"""

from __future__ import annotations

import csv
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import pytest
import torch
from PIL import Image

from fracture.data.fracatlas import find_radiographs
from fracture.data.images import inspect
from fracture.data.manifest import read_manifest, read_split
from fracture.evaluation.predict import find_images
from fracture.features.cache import FeatureCache, StoredFeatures
from fracture.models.classifier import restore
from fracture.runs.checkpoint import load_checkpoint
from tests.bad_images import bad_images, png_header, saved
from tests.conftest import LITE, REAL, REPEATS, Refusal, run_script

Count = Callable[[str, object], None]


@pytest.fixture(scope="module")
def read(drawn: Path, workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scripts make of a data set of drawn films and bad images, once for all tests."""
    place = tmp_path_factory.mktemp("bad")
    films = sorted(drawn.glob("images/Fractured/*"))[:4]
    if (REAL / "images").is_dir():
        films += sorted(REAL.glob("images/Fractured/*"))[100:102]
    made = bad_images(films, count=250 * min(REPEATS, 4), seed=REPEATS)
    shutil.copytree(drawn / "images", place / "films")
    for item in made:
        (place / "films" / "Fractured" / item.name).write_bytes(item.content)
    split = run_script(place, "split_dataset.py", "--data_root", "films", "--split_dir", "split")
    quiet = ("--split_dir", "split", "--epochs", "1", "--wandb_mode", "disabled")
    trained = run_script(place, "train.py", *LITE, *quiet)
    files = [str(place / "films" / "Fractured" / item.name) for item in made]
    found = run_script(workplace, "infer.py", *files, "--out", str(place / "found.csv"))
    for done in (split, trained, found):
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with (place / "found.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        lines = [*csv.DictReader(file)]
    assert [line["file"] for line in lines] == files
    p = {
        item.name: float(line["p_fractured"]) if line["p_fractured"] else None
        for item, line in zip(made, lines, strict=True)
    }
    notes = {item.name: line["note"] for item, line in zip(made, lines, strict=True)}
    rows = {Path(row.image).name: row for row in read_manifest(place / "split")[0]}
    return {
        "made": made,
        "p": p,
        "notes": notes,
        "rows": rows,
        "place": place,
        "said": split.stdout,
    }


def test_every_file_is_kept_or_excluded_for_a_reason(
    read: dict[str, Any], record_property: Count
) -> None:
    rows, files = read["rows"], [*(read["place"] / "films").glob("*/*")]
    kept = [row for row in rows.values() if row.split != "excluded"]
    excluded = [row for row in rows.values() if row.split == "excluded"]
    assert rows.keys() == {file.name for file in files}
    assert all(row.reason for row in excluded)
    assert f"files found{len(files):12,}" in read["said"]
    assert f"kept{len(kept):19,}" in read["said"]
    assert len(kept) + len(excluded) == len(files)
    assert len(read["made"]) >= 300
    record_property("bad images tried", len(read["made"]))


def test_both_scripts_read_the_same_files_and_refuse_the_others_alike(read: dict[str, Any]) -> None:
    for name, p in read["p"].items():
        undecodable, reason = read["rows"][name].reason.split(": ", 1)[0], read["notes"][name]
        assert (p is None) == (undecodable == "undecodable") == bool(reason), name
        if p is None:
            assert read["rows"][name].reason == "undecodable: " + reason.split(": ", 1)[1]
            assert reason.isprintable()
            assert len(reason) < 200


def test_a_film_in_other_clothes_has_the_same_probability_and_a_cut_one_none(
    read: dict[str, Any],
) -> None:
    whole = {item.film: item.name for item in read["made"] if item.verdict == "same"}
    groups: dict[int, set[str]] = {}
    for item in read["made"]:
        p, right = read["p"][item.name], read["p"][whole[item.film]]
        if item.verdict == "same":
            groups.setdefault(item.film, set()).add(read["rows"][item.name].group)
        if item.verdict == "same" or (item.verdict == "cut" and p is not None):
            assert p == pytest.approx(right, abs=0.02), item.name
        elif item.verdict == "refused":
            assert p is None, item.name
    assert {len(of_film) for of_film in groups.values()} == {1}  # found to be copies of each other


def test_what_is_trained_on_has_its_own_features(read: dict[str, Any], workplace: Path) -> None:
    checkpoint = load_checkpoint(workplace / "runs" / "first" / "best.pt")
    classifier = restore(checkpoint, "imagenet", "float32")
    cache = FeatureCache(read["place"] / "cache", classifier.recipe.describe(), 1280)
    places = cache.find()
    rows = read_split(read["place"] / "split", "train", "val").rows
    assert {row.sha256 for row in rows} == places.keys()
    features = StoredFeatures(cache, torch.tensor([places[row.sha256] for row in rows]))
    for row, p in zip(rows, classifier.p_positive(features), strict=True):
        if (alone := read["p"].get(Path(row.image).name)) is not None:
            assert p == pytest.approx(alone, abs=1e-3), row.image


def test_folders_say_what_they_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.png", "b.DCM", "notes.txt", "film", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.png", "b.DCM"]
    assert "not named like images: 2 files, such as " in capsys.readouterr().out


def test_no_bomb_takes_gigabytes_or_seconds(tmp_path: Path) -> None:
    bombs = {f"{n}.png": png_header(n, n) for n in (9_999, 10_001, 14_000, 65_500, 2**31 - 1)}
    bombs["largest.png"] = saved(Image.new("L", (9_999, 9_999)), "PNG", compress_level=1)
    before, begun = getrusage(RUSAGE_SELF).ru_maxrss, time.monotonic()
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        fault = inspect(tmp_path / name).fault
        assert (fault == "") == (name == "largest.png")
        assert ("exceeds limit of 100000000" in fault) == (name not in ("largest.png", "9999.png"))
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert time.monotonic() - begun < 10


def test_no_data_set_without_two_classes_is_split(
    drawn: Path, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    films = sorted(drawn.glob("images/*/*"))[:4]
    for name, classes in (
        ("one", "A"),
        ("three", "ABC"),
        ("none", ""),
        ("bad", "AB"),
        ("few", "AB"),
    ):
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            for film in films:
                shutil.copy(film, tmp_path / name / label / film.name)
                if name == "bad":
                    (tmp_path / name / label / film.name).write_bytes(film.read_bytes()[:999])
    (tmp_path / "none").mkdir()
    for label in ("A", "B"):
        (tmp_path / "empty" / label).mkdir(parents=True)
    for name, member in (("evil", "../evil.jpg"), ("bomb", "A/a.jpg")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(member, bytes(9_000_000 if name == "bomb" else 9))
    for root, said in (
        *(("one", "here are: A"), ("three", "here are: A, B, C"), ("none", "here are: none")),
        *(
            ("bad", "positive_class"),
            ("few", "positive_class"),
            ("empty", "two classes are needed"),
        ),
        *(("evil.zip", "outside itself"), ("bomb.zip", "absurdly many"), ("/dev/null", "neither")),
    ):
        line = refusal("split_dataset.py", "--data_root", root, "--split_dir", "new")
        assert said in line
        assert not (tmp_path / "new").exists()
    arguments = ("--split_dir", "new", "--positive_class", "A")
    assert "would have no A" in refusal("split_dataset.py", "--data_root", "bad", *arguments)


def test_a_folder_that_is_no_class_of_fracatlas_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for label in ("Fractured", "Non_fractured", "Unsure"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "film.png").touch()
    assert len(find_radiographs(tmp_path)) == 2
    assert "no class of FracAtlas: Unsure" in capsys.readouterr().out
