"""The split's record: one row for every file of the source, and where it went."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

from fracture.errors import InputError

SPLITS = ("train", "val", "test")
FILE_NAME = "manifest.csv"
SPLIT_ANEW = "split anew: python split_dataset.py --force"
HEADER = ["image", "class", "split", "group", "reason", "sha256", "traits"]


@dataclass(frozen=True)
class Row:
    """One file of the source.

    Attributes:
        image: path below the data root, with "/" on every system.
        label: class name.
        split: train, val, test or excluded.
        group: files of one group are copies of each other and share a split.
        reason: why it is excluded, or how its label was decided; else "".
        sha256: of the file's bytes, hexadecimal.
        traits: what dataset.csv says of it, as in "leg multiscan frontal".
    """

    image: str
    label: str
    split: str
    group: str
    reason: str
    sha256: str
    traits: str = ""

    @property
    def place(self) -> str:
        """Path below the split's folder, as in `train/Fractured/IMG0000019.jpg`."""
        return f"{self.split}/{self.label}/{Path(self.image).name}"


@dataclass(frozen=True)
class Split:
    """The images of one split or several, in the order of their places.

    Attributes:
        folder: holds train/, val/, test/ and the manifest.
        rows: the images.
        classes: class names in alphabetical order, as torchvision's ImageFolder numbers them.
        sha256: of the manifest file, hexadecimal; the name of the split.
    """

    folder: Path
    rows: list[Row]
    classes: list[str]
    sha256: str


def join_reasons(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)


def write_manifest(path: Path, rows: Iterable[Row]) -> None:
    # surrogateescape keeps file names that are not UTF-8, here and in read_manifest.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([HEADER, *map(astuple, rows)])


def read_manifest(split_dir: Path) -> tuple[list[Row], str]:
    """All rows of a split's manifest, and the sha256 of the file.

    Raises:
        InputError: there is no split here, or its manifest is damaged.
    """
    path = split_dir / FILE_NAME
    if (split_dir / "fold-1").is_dir():
        raise InputError(f"{split_dir} holds folds; take one: --split_dir {split_dir}/fold-1")
    if not path.is_file():
        raise InputError(f"{split_dir}: no split here; make one: python split_dataset.py")
    content = path.read_bytes()
    text = content.decode("utf-8", errors="surrogateescape")
    try:
        header, *lines = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
    except csv.Error:
        header, lines = [], []
    if header != HEADER or any(len(line) != len(HEADER) for line in lines):
        raise InputError(f"{path}: damaged; {SPLIT_ANEW}")
    return [Row(*line) for line in lines], hashlib.sha256(content).hexdigest()


def read_split(split_dir: Path, *names: str) -> Split:
    """Read splits from the manifest, and check that their folders hold exactly what it says.

    Raises:
        InputError: there is no split here, or a file is missing, extra or in another class.
    """
    all_rows, digest = read_manifest(split_dir)
    rows = sorted((row for row in all_rows if row.split in names), key=lambda row: row.place)
    listed = {row.place for row in rows}
    files = (file for name in names for file in (split_dir / name).glob("*/[!.]*"))
    if odd := sorted(listed ^ {file.relative_to(split_dir).as_posix() for file in files}):
        fault = "is missing" if odd[0] in listed else f"is not in {FILE_NAME}"
        raise InputError(
            f"{split_dir / odd[0]} {fault} (files that disagree: {len(odd)}); {SPLIT_ANEW}"
        )
    return Split(split_dir, rows, sorted({row.label for row in all_rows}), digest)
