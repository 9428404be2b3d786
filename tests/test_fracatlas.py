"""Labels come from where the published rule says, and any two class folders will do."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture.cli import InputError
from fracture.data.fracatlas import Radiograph, body_part, find_radiographs
from split_dataset import read_rows
from tests.conftest import run_script


@pytest.fixture
def copy(drawn: Path, tmp_path: Path) -> Path:
    """The drawn data set, to be changed."""
    shutil.copytree(drawn, tmp_path / "FracAtlas")
    return tmp_path / "FracAtlas"


def edit(root: Path, image: str, **changes: object) -> None:
    """Change a row of dataset.csv."""
    table = root / "dataset.csv"
    with table.open() as file:
        rows = [*csv.DictReader(file)]
    next(row for row in rows if row["image_id"] == image).update(
        {key: str(value) for key, value in changes.items()}
    )
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def film(root: Path, label: str, number: int = 3) -> Radiograph:
    return [item for item in find_radiographs(root) if f"/{label}/" in item.image][number]


@pytest.mark.parametrize(
    ("folder", "flag", "count", "label"),
    [
        ("Fractured", 0, 1, "Fractured"),  # IMG0003298 of the first release
        ("Fractured", 0, 0, "Non_fractured"),
        ("Non_fractured", 1, 2, "Fractured"),
        ("Non_fractured", 1, 0, "Non_fractured"),
    ],
)
def test_two_of_three_witnesses_decide_a_label_and_the_manifest_says_so(
    copy: Path, folder: str, flag: int, count: int, label: str
) -> None:
    before = film(copy, folder)
    edit(copy, before.path.name, fractured=flag, fracture_count=count)
    after = film(copy, folder)
    assert (before.label, before.note) == (folder, "")
    assert after.label == label
    assert (f"folder {folder}, fractured {flag}, fracture_count {count}") in after.note
    row = next(row for row in read_rows(copy) if row.image == after.image)
    assert (row.label, after.note in row.reason) == (label, True)


@pytest.mark.parametrize("flag", [0, 1])
def test_of_an_id_in_both_folders_the_file_stays_that_the_table_agrees_with(
    copy: Path, flag: int
) -> None:
    """As IMG0003375 and IMG0003376 of v7."""
    item = film(copy, "Fractured")
    shutil.copy(item.path, copy / "images" / "Non_fractured")
    edit(copy, item.path.name, fractured=flag, fracture_count=flag)
    rows = {row.image: row for row in read_rows(copy) if row.image.endswith(item.path.name)}
    kept, spare = "images/Non_fractured/", "images/Fractured/"
    if flag:
        kept, spare = spare, kept
    label = kept.split("/")[1]
    assert (rows[kept + item.path.name].split, rows[kept + item.path.name].label) == ("", label)
    assert rows[spare + item.path.name].split == "excluded"
    assert rows[spare + item.path.name].reason.startswith(f"copy of {kept}{item.path.name}, the ")


def test_a_folder_without_a_table_works_from_its_folders(copy: Path) -> None:
    with_table = [(item.image, item.label) for item in find_radiographs(copy)]
    (copy / "dataset.csv").unlink()
    assert [(item.image, item.label) for item in find_radiographs(copy)] == with_table
    assert {item.traits for item in find_radiographs(copy)} == {""}


def test_a_file_that_the_table_does_not_list_keeps_its_folders_label(copy: Path) -> None:
    edit(copy, film(copy, "Fractured").path.name, image_id="other.jpg")
    item = film(copy, "Fractured")
    assert (item.label, item.note) == ("Fractured", "label: the folder's, not in dataset.csv")


@pytest.mark.parametrize("text", ["", "image_id,fractured\nIMG0000000.jpg,1\n", "\0"])
def test_a_table_of_something_else_is_refused(copy: Path, text: str) -> None:
    (copy / "dataset.csv").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.csv"):
        find_radiographs(copy)


def test_traits_name_body_part_and_view(real: Path) -> None:
    traits = {item.path.name: item.traits for item in find_radiographs(real)}
    assert traits["IMG0000000.jpg"] == "leg multiscan frontal lateral"
    assert body_part(traits["IMG0000000.jpg"]) == "leg"
    assert body_part("hand shoulder mixed frontal") == "mixed"
    assert body_part("") == "unknown"


def write(path: Path, mode: str, seed: int) -> None:
    """A noise image of its own in any mode that films come in."""
    grey = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 48), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 16).save(path)
    else:
        grey.convert(mode).save(path)


def test_any_two_class_folders_can_be_split_and_trained(tmp_path: Path) -> None:
    kinds = [("RGB", "jpg"), ("CMYK", "jpg"), ("L", "jpg"), ("L", "png"), ("RGB", "png")]
    kinds += [("RGBA", "png"), ("P", "png"), ("LA", "png"), ("1", "png"), ("I;16", "png")]
    for label in ("benign", "malign tumour"):
        for i in range(30):
            mode, suffix = kinds[i % len(kinds)]
            write(tmp_path / "tumours" / label / f"{i} film.{suffix}", mode, i + 30 * len(label))
    (tmp_path / "tumours" / ".cache").mkdir()
    refused = run_script(tmp_path, "split_dataset.py", "--data_root", "tumours")
    assert refused.returncode == 2
    assert "allowed: ['benign', 'malign tumour']" in refused.stderr
    settings = ("--positive_class", "malign tumour", "--backbone", "efficientnet-lite0")
    split = run_script(tmp_path, "split_dataset.py", "--data_root", "tumours", *settings)
    assert (split.returncode, split.stderr) == (0, "")
    assert "60 (30)" in split.stdout
    run = (*settings, "--image_size", "64", "--epochs", "1", "--wandb_mode", "disabled")
    assert run_script(tmp_path, "train.py", *run).returncode == 0
    tested = run_script(tmp_path, "infer.py", *run)
    assert (tested.returncode, "test accuracy" in tested.stdout) == (0, True)


@pytest.mark.parametrize("folders", [[], ["a"], ["a", "b", "c"]])
def test_other_than_two_class_folders_are_refused_by_name(
    tmp_path: Path, folders: list[str]
) -> None:
    for name in folders:
        write(tmp_path / name / "1.png", "L", 0)
    with pytest.raises(InputError, match=f"here are: {', '.join(folders) or 'none'};"):
        find_radiographs(tmp_path)


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png", "L", 0)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="two classes"):
        find_radiographs(tmp_path)
