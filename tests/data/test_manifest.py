"""The record survives any file name, and shows whatever happened to a split since."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import split_dataset
from fracture.cli import InputError
from fracture.data.manifest import Row, check_splits, read_manifest, write_manifest


@pytest.mark.parametrize("name", ["a,b", 'q"q', "x\ny", "x\r\n", "\u2028", "caf\udce9", "ä 1"])
def test_any_file_name_survives(tmp_path: Path, name: str) -> None:
    rows = [Row(f"images/F/{name}", "F", "excluded", "g", name, "", "leg")] * 2
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path)[0] == rows
    subprocess.run(["sha256sum", "--check", "manifest.csv.sha256"], cwd=tmp_path, check=True)


# A hard link is removed before its name is written to: its source stays as it is.
CHANGES: dict[str, Callable[[Path], object]] = {
    "is missing": lambda film: film.unlink(),
    "has changed": lambda film: shutil.move(shutil.copy(__file__, film.with_name("x")), film),
    "x is not part of the split; move it away": lambda film: film.with_name("x").touch(),
    "no split here; make one: python split_dataset.py": lambda film: shutil.rmtree(film.parents[2]),
    "a copy is in": lambda film: write_manifest(
        film.parents[2], [replace(row, group="g") for row in read_manifest(film.parents[2])[0]]),
}  # fmt: skip


@pytest.mark.parametrize("line", CHANGES)
def test_a_check_finds_what_changed(split_dir: Path, line: str) -> None:
    check_splits(split_dir)
    CHANGES[line](next((split_dir / "test/Fractured").iterdir()))
    with pytest.raises(InputError, match=line):
        check_splits(split_dir)


def test_a_check_finds_a_foreign_fold(drawn: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds"
    split_dataset.main(["--data_root", f"{drawn}", "--folds", "3", "--split_dir", f"{folds}"])
    check_splits(folds)
    with pytest.raises(InputError, match=r"holds folds; take one: --split_dir .*folds/fold-1"):
        read_manifest(folds)
    shutil.rmtree(folds / "fold-3")
    shutil.copytree(folds / "fold-2", folds / "fold-3")
    with pytest.raises(InputError, match="the folds do not test each image once"):
        check_splits(folds)
