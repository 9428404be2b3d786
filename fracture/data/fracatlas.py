"""The data set as published: where its files are and how they are labelled.

FracAtlas: Abedeen et al., Scientific Data 10:521 (2023), doi 10.1038/s41597-023-02432-4. Any other
folder with two class folders is read the same way; its classes are named after the folders.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from fracture.cli import InputError
from fracture.data.images import files_below

CLASSES = ("Fractured", "Non_fractured")
BODY_PARTS = ("hand", "leg", "hip", "shoulder", "mixed")  # mixed: several of the others
VIEWS = ("frontal", "lateral", "oblique")
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
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
        split: where the publisher put it: train, val, test; "" if that is left to us.
    """

    path: Path
    image: str
    label: str
    traits: str = ""
    note: str = ""
    duplicate_of: str = ""
    split: str = ""


def body_part(traits: str) -> str:
    """The body part among an image's traits, or "unknown"."""
    parts = set(traits.split()).intersection(BODY_PARTS)
    return "mixed" if "mixed" in parts else min(parts, default="unknown")


def find_radiographs(
    data_root: Path, positive: str = CLASSES[0], negative: str | None = None
) -> list[Radiograph]:
    """List every file in the class folders, sorted by `image`.

    The label is the class folder's name. FracAtlas' classes get their published spelling (mirrors
    write `non_fractured`), and are checked against dataset.csv if it is there (`resolve_labels`).
    Folders train, val and test, as others publish, each hold their own class folders.

    Args:
        data_root: from `fetch_dataset`.
        positive: the class that several folders make, if
        negative: names the folder that stands against all others.

    Raises:
        InputError: there are not two classes with files.
    """
    parts = {p: PARTS[p.name.lower()] for p in _folders(data_root) if p.name.lower() in PARTS}
    if not {"train", "test"} <= set(parts.values()):
        parts = {data_root: ""}
    found = [
        Radiograph(path, path.relative_to(data_root).as_posix(), label, split=split)
        for root, split in parts.items()
        for folder, label in _class_folders(root, positive, negative).items()
        for path in files_below(folder)
    ]
    classes = sorted({radiograph.label for radiograph in found})
    if len(classes) < 2:
        raise InputError(f"{data_root}: only class {classes} has files; two classes are needed")
    table = data_root / "dataset.csv"
    if classes == sorted(CLASSES) and table.is_file():
        found = resolve_labels(found, table)
    return sorted(found, key=lambda radiograph: radiograph.image)


def _class_folders(data_root: Path, positive: str, negative: str | None) -> dict[Path, str]:
    """The class folders, in images/ if there is one, and the class of each."""
    images = next((p for p in _folders(data_root) if p.name.lower() == "images"), data_root)
    published = {name.lower(): name for name in CLASSES}
    found = {path: published.get(path.name.lower(), path.name) for path in _folders(images)}
    if negative:
        if negative not in found.values():
            allowed = ", ".join(found.values())
            raise InputError(f"{images}: negative_class is {negative!r}; allowed: {allowed}")
        rest = [name for name in found.values() if name != negative]
        print(f"{images}: {negative} against {', '.join(rest)}, as {positive}")
        return {path: positive if name in rest else name for path, name in found.items()}
    if set(CLASSES) <= set(found.values()):
        if others := [name for name in found.values() if name not in CLASSES]:
            print(f"{images}: not a class of FracAtlas, left out: {', '.join(others)}")
        return {path: name for path, name in found.items() if name in CLASSES}
    if len(found) != 2:
        hint = "--negative_class NAME sets one against the rest, or pass another --data_root"
        raise InputError(f"{images}: {len(found)} class folders, two are needed; {hint}")
    return found


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def resolve_labels(found: list[Radiograph], table: Path) -> list[Radiograph]:
    """Label each file by the majority of three label sources, and note where they disagree.

    The sources are the class folder, `fractured` in dataset.csv, and `fracture_count` > 0 there.
    They disagree on IMG0003298 of the first release (Fractured by two of three). Release v7 has
    two ids in both class folders: the file in the wrong one is a duplicate.

    Raises:
        InputError: dataset.csv is not FracAtlas' own.
    """
    in_folder = {(item.path.name, item.label): item.image for item in found}

    def resolve(item: Radiograph, row: dict[str, str] | None) -> Radiograph:
        if row is None:
            return replace(item, note="label: the folder's, not in dataset.csv")
        fractured, count = row["fractured"], row["fracture_count"]
        votes = [item.label == CLASSES[0], int(fractured) > 0, int(count) > 0]
        label = CLASSES[0] if sum(votes) >= 2 else CLASSES[1]
        note = f"label: folder {item.label}, fractured {fractured}, fracture_count {count}"
        note = f"{note}; the majority's" if len(set(votes)) == 2 else ""
        traits = " ".join(trait for trait in TRAITS if row.get(trait) == "1")
        other = in_folder.get((item.path.name, label), "") if label != item.label else ""
        return replace(item, label=label, traits=traits, note=note, duplicate_of=other)

    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = {row["image_id"]: row for row in csv.DictReader(file)}
        return [resolve(item, rows.get(item.path.name)) for item in found]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{table}: not FracAtlas' table ({error}); mend or remove it") from error
