"""FracAtlas as published: where its files are and what they are labelled.

Abedeen et al., "FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of
Musculoskeletal Radiographs", Scientific Data 10:521 (2023), doi 10.1038/s41597-023-02432-4.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fracture.errors import InputError

CLASSES = ("Fractured", "Non_fractured")
SOURCE = "https://doi.org/10.6084/m9.figshare.22363012"


@dataclass(frozen=True)
class Radiograph:
    """One file of the data set: `image` is its path below the root, with "/" on every system."""

    path: Path
    image: str
    label: str


def find_radiographs(data_root: Path) -> list[Radiograph]:
    """List every file in the two class folders, sorted by `image`.

    The label is the class folder's name, in the published spelling (mirrors write `non_fractured`).

    Raises:
        InputError: `data_root` is not FracAtlas, a class has no files, or two of one name.
    """
    images = data_root / "images"
    if not images.is_dir():
        raise InputError(
            f"{data_root} is not FracAtlas (no images/ in it); "
            f"get it from {SOURCE}, unpack it and pass --data_root FOLDER"
        )
    published = {name.lower(): name for name in CLASSES}
    found = [
        Radiograph(path, path.relative_to(data_root).as_posix(), published[folder.name.lower()])
        for folder in images.iterdir()
        if folder.name.lower() in published
        for path in folder.rglob("*")
        if not path.is_dir()
    ]
    for name in CLASSES:
        if not any(radiograph.label == name for radiograph in found):
            raise InputError(f"{images / name}: no files of class {name} here")
    names = Counter((radiograph.label, radiograph.path.name) for radiograph in found)
    if twice := [name for (_, name), count in names.items() if count > 1]:
        raise InputError(f"{images}: two files of one class are called {twice[0]}; rename one")
    return sorted(found, key=lambda radiograph: radiograph.image)
