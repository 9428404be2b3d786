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

SPLITS = ("train", "val", "test")
FILE_NAME = "manifest.csv"
CHECKSUM = f"{FILE_NAME}.sha256"
SPLIT_AGAIN = "split again: python split_dataset.py --force"
HEADER = ["image", "class", "split", "group", "reason", "sha256", "traits"]


@dataclass(frozen=True)
class Row:
    """One file of the source.

    Attributes:
        image: path below the data root, with "/" on every system.
        label: class name.
        split: train, val, test or excluded.
        group: files of one group are copies of each other and share a split.
        reason: why the file is excluded, or how its label was decided; else "".
        sha256: of the file's bytes, hexadecimal.
        traits: from dataset.csv, as in "leg multiscan frontal".
    """

    image: str
    label: str
    split: str
    group: str
    reason: str
    sha256: str
    traits: str = ""

    @property
    def path(self) -> str:
        """Path below the split's folder, as in `train/Fractured/IMG0000019.jpg`."""
        return f"{self.split}/{self.label}/{below_class(self.image)}"


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
    path, noted = split_dir / FILE_NAME, split_dir / CHECKSUM
    if (split_dir / "fold-1").is_dir():
        raise InputError(f"{split_dir} holds folds; take one: --split_dir {split_dir}/fold-1")
    if not path.is_file():
        raise InputError(f"{split_dir}: no split here; make one: python split_dataset.py")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not (noted.is_file() and noted.read_bytes().startswith(digest.encode())):
        raise InputError(
            f"{path}: damaged, it does not match {CHECKSUM}; remove {split_dir} if nothing else is "
            "in it, and split again: python split_dataset.py"
        )
    text = content.decode("utf-8", errors="surrogateescape")
    _, *lines = csv.reader(io.StringIO(text, newline=""))
    return [Row(*line) for line in lines], digest


def source_of(split_dir: Path) -> Path:
    """The data set that a split was made from, according to the split's config.yaml."""
    file = split_dir / "config.yaml"
    try:
        return Path(yaml.safe_load(file.read_text())["data_root"])
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: damaged; {SPLIT_AGAIN}") from error


def holds_split(folder: Path) -> bool:
    """True if a folder holds a split, or folds, and no other file."""
    splits = [*folder.glob("fold-*")] or [folder]
    if not all((split / FILE_NAME).is_file() for split in splits):
        return False
    ours = {
        split / name
        for split in splits
        for name in (FILE_NAME, CHECKSUM, "config.yaml", *(r.path for r in read_manifest(split)[0]))
    }
    return {path for path in folder.rglob("*") if not path.is_dir()} <= ours


def check_splits(split_dir: Path) -> None:
    """Verify a split, or all folds of one, and print a line for each.

    Raises:
        InputError: a file is missing, extra or changed, a group is in two splits, or the folds do
            not test every image once.
    """
    folders = sorted(split_dir.glob("fold-*"))
    if not holds_split(split_dir):
        raise InputError(f"{split_dir}: no split, or other files beside it: move those away")
    tested: Counter[str] = Counter()
    for folder in folders or [split_dir]:
        rows = check_split(folder)
        tested.update(row.image for row in rows if row.split == "test")
    if folders and tested != Counter(row.image for row in rows):
        raise InputError(f"{split_dir}: the folds do not test each image once; {SPLIT_AGAIN}")


def check_split(split_dir: Path) -> list[Row]:
    """Verify one split, as `check_splits`, and return its rows."""
    rows = [row for row in read_manifest(split_dir)[0] if row.split != "excluded"]
    split_of: dict[str, str] = {}
    for row in tqdm(rows, "checking", disable=None):
        check_unchanged(split_dir, row)
        for name in (row.group, row.sha256):
            if split_of.setdefault(name, row.split) != row.split:
                raise InputError(f"{row.path}: a copy is in {split_of[name]}; {SPLIT_AGAIN}")
    print(f"{split_dir}: {len(rows):,} files as in {FILE_NAME}, no group in two splits")
    return rows


def check_unchanged(split_dir: Path, row: Row) -> None:
    """Verify that a file has the bytes that it had when the split was made."""
    path = split_dir / row.path
    if not path.is_file():
        raise InputError(f"{path} is missing; {SPLIT_AGAIN}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
        raise InputError(f"{path} has changed; {SPLIT_AGAIN}")
