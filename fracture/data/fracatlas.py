"""The data set as published: where its files are and how they are labelled.

FracAtlas: Abedeen et al., Scientific Data 10:521 (2023), doi 10.1038/s41597-023-02432-4. Any other
folder with two class folders is read the same way; its classes are named after the folders.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from fracture.cli import InputError
from fracture.data.images import files_below
from fracture.data.manifest import below_class

CLASSES = ("Fractured", "Non_fractured")
BODY_PARTS = ("hand", "leg", "hip", "shoulder", "mixed")  # mixed: several of the others
VIEWS = ("frontal", "lateral", "oblique")
TRAITS = (*BODY_PARTS, "hardware", "multiscan", *VIEWS)


@dataclass(frozen=True)
class Radiograph:
    """One file of the data set.

    Attributes:
        path: where it is.
        image: its path below the root, with "/" on every system.
        label: its class.
        traits: the `TRAITS` that dataset.csv gives it, separated by spaces.
        note: how the label was decided where folder and table disagree.
        duplicate_of: the `image` to keep if this file has the same id but lies in the wrong class
            folder; else "".
    """

    path: Path
    image: str
    label: str
    traits: str = ""
    note: str = ""
    duplicate_of: str = ""


def body_part(traits: str) -> str:
    """The body part among an image's traits, or "unknown"."""
    parts = set(traits.split()).intersection(BODY_PARTS)
    return "mixed" if "mixed" in parts else min(parts, default="unknown")


def find_radiographs(data_root: Path) -> list[Radiograph]:
    """List every file in the two class folders, sorted by `image`.

    The label is the class folder's name. FracAtlas' classes get their published spelling (mirrors
    write `non_fractured`), and are checked against dataset.csv if it is there (`resolve_labels`).

    Raises:
        InputError: there are not two classes with files, or two files of a class share a name.
    """
    found = [
        Radiograph(path, path.relative_to(data_root).as_posix(), label)
        for folder, label in _class_folders(data_root).items()
        for path in files_below(folder)
    ]
    classes = sorted({radiograph.label for radiograph in found})
    if len(classes) < 2:
        raise InputError(f"{data_root}: only class {classes} has files; two classes are needed")
    table = data_root / "dataset.csv"
    if classes == sorted(CLASSES) and table.is_file():
        found = resolve_labels(found, table)
    names = Counter((r.label, below_class(r.image)) for r in found if not r.duplicate_of)
    if twice := [name for (_, name), count in names.items() if count > 1]:
        raise InputError(f"{data_root}: two files of one class are called {twice[0]}; rename one")
    return sorted(found, key=lambda radiograph: radiograph.image)


def _class_folders(data_root: Path) -> dict[Path, str]:
    """The class folders, in images/ if there is one, and the class of each."""

    def folders(parent: Path) -> list[Path]:
        visible = (path for path in parent.iterdir() if not path.name.startswith("."))
        return sorted(path for path in visible if path.is_dir())

    images = next((path for path in folders(data_root) if path.name.lower() == "images"), data_root)
    published = {name.lower(): name for name in CLASSES}
    found = {path: published.get(path.name.lower(), path.name) for path in folders(images)}
    fracatlas = {path: name for path, name in found.items() if name in CLASSES}
    if len(set(fracatlas.values())) == 2:
        if others := ", ".join(found[path] for path in found.keys() - fracatlas.keys()):
            print(f"{images}: not a class of FracAtlas, left out: {others}")
        return fracatlas
    if len(found) != 2:
        there = ", ".join(found.values()) or "none"
        raise InputError(
            f"{images}: two class folders are needed, found: {there}; pass --data_root FOLDER "
            "(FracAtlas' folder holds images/ and dataset.csv)"
        )
    return found


def resolve_labels(found: list[Radiograph], table: Path) -> list[Radiograph]:
    """Label each file by the majority of three label sources, and note where they disagree.

    The sources are the class folder, `fractured` in dataset.csv, and `fracture_count` > 0 there.
    They disagree on IMG0003298 of the first release (Fractured by two of three). Release v7 has
    two ids in both class folders: the file in the wrong one is a duplicate.

    Raises:
        InputError: dataset.csv is not FracAtlas' own.
    """
    rows: dict[str, tuple[bool, bool, dict[str, str]]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                name, flag = row["image_id"], int(row["fractured"])
                if name in rows or flag not in (0, 1):
                    raise ValueError(f"{name} is listed twice, or fractured is not 0 or 1")
                rows[name] = (flag == 1, int(row["fracture_count"]) > 0, row)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{table}: not FracAtlas' table ({error}); mend or remove it") from error
    in_folder = {(item.path.name, item.label): item.image for item in found}

    def resolve(item: Radiograph) -> Radiograph:
        if item.path.name not in rows:
            return replace(item, note="label: the folder's, not in dataset.csv")
        flag, counted, row = rows[item.path.name]
        votes = (item.label == CLASSES[0], flag, counted)
        label = CLASSES[0] if sum(votes) >= 2 else CLASSES[1]
        traits = " ".join(trait for trait in TRAITS if row.get(trait) == "1")
        note = f"label: folder {item.label}, fractured {row['fractured']}, fracture_count "
        note = f"{note}{row['fracture_count']}; the majority's" if len({*votes}) > 1 else ""
        other = in_folder.get((item.path.name, label), "") if label != item.label else ""
        return replace(item, label=label, traits=traits, note=note, duplicate_of=other)

    return [resolve(item) for item in found]
