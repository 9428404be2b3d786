"""The split's record: one row for every file of the source, and where it went."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from fracture.cli import InputError
from fracture.config import read_settings

SPLITS = ("train", "val", "test")
FILE_NAME = "manifest.csv"
CHECKSUM = f"{FILE_NAME}.sha256"
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
        return f"{self.split}/{self.label}/{below_class(self.image)}"


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


def below_class(image: str) -> str:
    """An image's path below its class folder, which lies in the data root or in its images/."""
    parts = image.split("/")
    return "/".join(parts[2 if parts[0].lower() == "images" else 1 :])


def join_reasons(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)


def write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    """Write the record, and beside it its checksum as `sha256sum --check` reads it."""
    path = folder / FILE_NAME
    # surrogateescape keeps file names that are not UTF-8, here and in read_manifest.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([HEADER, *map(astuple, rows)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / CHECKSUM).write_text(f"{digest}  {FILE_NAME}\n")


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
    digest, noted = hashlib.sha256(content).hexdigest(), split_dir / CHECKSUM
    whole = noted.is_file() and noted.read_bytes().startswith(digest.encode())
    whole &= header == HEADER and all(len(line) == len(HEADER) for line in lines)
    rows = [Row(*line) for line in lines] if whole else []
    if (
        not rows
        or len({row.image for row in rows}) < len(rows)
        or not {row.split for row in rows} <= {*SPLITS, "excluded"}
    ):
        raise InputError(
            f"{path}: damaged, or not as {CHECKSUM} says; if nothing else is in {split_dir}, "
            "remove it and split anew: python split_dataset.py"
        )
    return rows, digest


def read_split(split_dir: Path, *names: str) -> Split:
    """Read splits from the manifest, and check that their folders hold exactly what it says.

    Raises:
        InputError: there is no split of two classes here, or a file is missing, extra or in another
            class.
    """
    all_rows, digest = read_manifest(split_dir)
    rows = sorted((row for row in all_rows if row.split in names), key=lambda row: row.place)
    listed = {row.place for row in rows}
    files = (file for name in names for file in (split_dir / name).rglob("[!.]*"))
    there = {file.relative_to(split_dir).as_posix() for file in files if not file.is_dir()}
    if odd := sorted(listed ^ there):
        missing = odd[0] in listed
        fault = "is missing" if missing else f"is not in {FILE_NAME}"
        advice = SPLIT_ANEW if missing else "move it away"
        raise InputError(
            f"{split_dir / odd[0]} {fault} (files that disagree: {len(odd)}); {advice}"
        )
    classes = sorted({row.label for row in all_rows})
    if len(classes) != 2:
        raise InputError(f"{split_dir / FILE_NAME}: two classes are needed, not {classes}")
    return Split(split_dir, rows, classes, digest)


def source_of(split_dir: Path) -> Path:
    """The data set that a split was made of, as its config.yaml says.

    Raises:
        InputError: that file does not say it.
    """
    file = split_dir / "config.yaml"
    try:
        return Path(read_settings(file)["data_root"])
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: damaged; {SPLIT_ANEW}") from error


def holds_split(folder: Path) -> bool:
    """Whether a folder holds a split, or folds, and no file besides."""
    splits = [*folder.glob("fold-*")] or [folder]
    if not all((split / FILE_NAME).is_file() for split in splits):
        return False
    listed = {
        split / place
        for split in splits
        for place in (
            FILE_NAME,
            CHECKSUM,
            "config.yaml",
            *(row.place for row in read_manifest(split)[0]),
        )
    }
    return {path for path in folder.rglob("*") if not path.is_dir()} <= listed


def check_splits(split_dir: Path) -> None:
    """Verify a split, or all folds of one.

    Raises:
        InputError: a fold is missing or of another making, besides what `check_split` finds.
    """
    folders = sorted(split_dir.glob("fold-*"))
    if not holds_split(split_dir):
        raise InputError(f"{split_dir}: no split, or other files besides: move those away")
    tested: Counter[str] = Counter()
    for folder in folders or [split_dir]:
        check_split(folder)
        tested.update(row.image for row in read_split(folder, "test").rows)
    if folders and tested != Counter(row.image for row in read_split(folders[0], *SPLITS).rows):
        raise InputError(f"{split_dir}: the folds do not test each image once; {SPLIT_ANEW}")


def check_unchanged(split_dir: Path, row: Row) -> None:
    """Verify a file of a split.

    Raises:
        InputError: it has other bytes than when the split was made.
    """
    content = (split_dir / row.place).read_bytes()
    if hashlib.sha256(content).hexdigest() != row.sha256:
        raise InputError(f"{split_dir / row.place} has changed; {SPLIT_ANEW}")


def check_split(split_dir: Path) -> None:
    """Verify that a split's files are those of its manifest, and that no group straddles it.

    Raises:
        InputError: a file is missing, extra, changed or in another class, or a group is torn apart.
    """
    rows = read_split(split_dir, *SPLITS).rows
    for row in tqdm(rows, "checking", disable=None):
        check_unchanged(split_dir, row)
    home: dict[str, str] = {}
    for row in rows:
        for name in (row.group, row.sha256):
            if home.setdefault(name, row.split) != row.split:
                raise InputError(f"{row.place}: a copy of it is in {home[name]}; {SPLIT_ANEW}")
    print(f"{split_dir}: {len(rows):,} files, each as {FILE_NAME} says, no group in two splits")
