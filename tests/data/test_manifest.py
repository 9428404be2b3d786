"""The record survives any file name, and tells a split's files from others."""

import subprocess
from pathlib import Path

import pytest

import split_dataset
from fracture.cli import InputError
from fracture.data.manifest import Row, read_manifest, refuse_strays, write_manifest


@pytest.mark.parametrize("name", ["a,b", 'q"q', "x\ny", "x\r\n", "\u2028", "caf\udce9", "ä 1"])
def test_any_file_name_survives(tmp_path: Path, name: str) -> None:
    rows = [Row(f"images/F/{name}", "F", "excluded", "g", name, "", "leg")] * 2
    write_manifest(tmp_path, rows)
    assert read_manifest(tmp_path)[0] == rows
    subprocess.run(["sha256sum", "--check", "manifest.csv.sha256"], cwd=tmp_path, check=True)


def test_a_split_is_replaced_only_if_nothing_else_lies_in_it(split_dir: Path) -> None:
    refuse_strays(split_dir)
    (split_dir / "test/Fractured/notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt is not part of the split; move it away"):
        refuse_strays(split_dir)
    with pytest.raises(InputError, match=r"no split here; make one: python split_dataset\.py"):
        refuse_strays(split_dir / "test")


def test_folds_are_named_where_a_split_is_wanted(drawn: Path, tmp_path: Path) -> None:
    folds = tmp_path / "folds"
    split_dataset.main(["--data_root", f"{drawn}", "--folds", "3", "--split_dir", f"{folds}"])
    refuse_strays(folds)
    with pytest.raises(InputError, match=r"holds folds; take one: --split_dir .*folds/fold-1"):
        read_manifest(folds)
