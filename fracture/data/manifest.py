"""The split's record: one row for every file of the source, and where it went."""

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path

import yaml

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
        split: train, val, test or excluded; "" until that is decided.
        group: files of one group, copies or one patient's, share a split.
        reason: why the file is excluded, or how its label was decided; else "".
        sha256: of the file's bytes, hexadecimal.
        traits: from dataset.csv, as in "leg multiscan frontal".
    """

    image: str
    label: str
    split: str
    group: str = ""
    reason: str = ""
    sha256: str = ""
    traits: str = ""

    @property
    def name(self) -> str:
        """Class and path below it, as in `Fractured/IMG0000019.jpg`: the same in every release.

        Where several folders make a class, or folders for train and test hold the classes, these
        folders stay in the path.
        """
        parts = self.image.split("/")  # the class folder lies in the data root or in its images/
        below_class = parts[2:] if parts[0].lower() == "images" else parts[1:]
        known = parts[0].lower() in ("images", self.label.lower(), "fractured", "non_fractured")
        return "/".join([self.label, *(below_class if known else parts)])

    @property
    def path(self) -> str:
        """Path below the split's folder, as in `train/Fractured/IMG0000019.jpg`."""
        return f"{self.split}/{self.name}"


def write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    """Write the record, and beside it its checksum as `sha256sum --check` reads it."""
    path = folder / FILE_NAME
    # surrogateescape keeps file names that are not UTF-8, here and in read_manifest.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *map(astuple, rows)])
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
    digest = hashlib.sha256(content).hexdigest()
    if not (split_dir / CHECKSUM).read_bytes().startswith(digest.encode()):
        raise InputError(f"{path}: damaged; remove {split_dir}, then: python split_dataset.py")
    text = content.decode("utf-8", errors="surrogateescape")
    _, *lines = csv.reader(io.StringIO(text, newline=""))
    return [Row(*line) for line in lines], digest


def source_of(split_dir: Path) -> Path:
    """The data set that a split was made from, according to the split's config.yaml."""
    return Path(yaml.safe_load((split_dir / "config.yaml").read_text())["data_root"])


def refuse_strays(split_dir: Path) -> None:
    """Refuse to replace a split, or all folds of one, if that would remove other files.

    Raises:
        InputError: there is no split here, or there are other files.
    """
    ours = set()
    for folder in sorted(split_dir.glob("fold-*")) or [split_dir]:
        listed = (row.path for row in read_manifest(folder)[0])
        ours |= {folder / name for name in (FILE_NAME, CHECKSUM, "config.yaml", *listed)}
    if strays := [p for p in split_dir.rglob("*") if p not in ours and not p.is_dir()]:
        raise InputError(f"{strays[0]} is not part of the split; move it away")
