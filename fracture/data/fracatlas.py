"""The data set as published: where its files are and how they are labelled.

FracAtlas: Abedeen et al., Scientific Data 10:521 (2023), doi 10.1038/s41597-023-02432-4. Any other
folder with two class folders is read the same way; its classes are named after the folders.
"""

import csv
from dataclasses import replace
from pathlib import Path

from fracture.cli import InputError
from fracture.data.images import files_below
from fracture.data.manifest import Row

CLASSES = ("Fractured", "Non_fractured")
BODY_PARTS = ("hand", "leg", "hip", "shoulder", "mixed")  # mixed: several of the others
VIEWS = ("frontal", "lateral", "oblique")
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TRAITS = (*BODY_PARTS, "hardware", "multiscan", *VIEWS)


def body_part(traits: str) -> str:
    """The body part among an image's traits, or "unknown"."""
    parts = set(traits.split()).intersection(BODY_PARTS)
    return "mixed" if "mixed" in parts else min(parts, default="unknown")


def find_radiographs(
    data_root: Path, positive: str = CLASSES[0], negative: str | None = None
) -> list[Row]:
    """List every file in the class folders, sorted by `image`; nothing else of a row is known yet.

    The label is the class folder's name. FracAtlas' classes get their published spelling (mirrors
    write `non_fractured`). Folders train, val and test, as others publish, each hold their own
    class folders, and give the split.

    Args:
        data_root: from `fetch_dataset`.
        positive: the class of all other folders, if
        negative: names the one folder of the negative class.

    Raises:
        InputError: there are not two classes with files.
    """
    parts = {p: PARTS[p.name.lower()] for p in _folders(data_root) if p.name.lower() in PARTS}
    if not {"train", "test"} <= set(parts.values()):
        parts = {data_root: ""}
    found = [
        Row(path.relative_to(data_root).as_posix(), label, split)
        for root, split in parts.items()
        for folder, label in _class_folders(root, positive, negative).items()
        for path in files_below(folder)
    ]
    classes = {row.label for row in found}
    if len(classes) < 2:
        raise InputError(f"{data_root}: only class {classes} has files; two classes are needed")
    return sorted(found, key=lambda row: row.image)


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
        here = ", ".join(sorted(found.values())[:5]) or "none"
        hint = "pass another --data_root, or --negative_class NAME to set one against the rest"
        raise InputError(f"{images}: two class folders are needed, found: {here}; {hint}")
    return found


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))


def resolve_labels(rows: list[Row], data_root: Path) -> list[Row]:
    """Label each file by the majority of three label sources, and note where they disagree.

    The sources are the class folder, `fractured` in dataset.csv, and `fracture_count` > 0 there.
    They disagree on IMG0003298 of the first release (Fractured by two of three). Release v7 has
    two ids in both class folders: of these the file in the wrong one is excluded, if the other can
    be decoded. Without FracAtlas' classes or its table, the folders' labels stay.

    Args:
        rows: from `find_radiographs`; those of files that cannot be decoded are excluded.
        data_root: where the table is.
    """
    file = data_root / "dataset.csv"
    if {row.label for row in rows} != {*CLASSES} or not file.is_file():
        return rows
    with file.open(newline="", encoding="utf-8-sig") as lines:
        table = {line["image_id"]: line for line in csv.DictReader(lines)}
    usable = {(Path(r.image).name, r.label): r.image for r in rows if r.split != "excluded"}

    def resolve(row: Row) -> Row:
        name, label, reason = Path(row.image).name, row.label, row.reason
        note, known = "label: the folder's, not in dataset.csv", table.get(name, {})
        if known:
            fractured, count = known["fractured"], known["fracture_count"]
            votes = [label == CLASSES[0], int(fractured) > 0, int(count) > 0]
            note = f"label: folder {label}, fractured {fractured}, fracture_count {count}"
            note = f"{note}; the majority's" if len(set(votes)) == 2 else ""
            label = CLASSES[0] if sum(votes) >= 2 else CLASSES[1]
        if label != row.label and (other := usable.get((name, label))):
            row = replace(row, split="excluded", group="")
            reason = f"copy of {other}, the same id in the other class folder"
        traits = " ".join(trait for trait in TRAITS if known.get(trait) == "1")
        reason = "; ".join(filter(None, [reason, note]))
        return replace(row, label=label, traits=traits, reason=reason)

    return [resolve(row) for row in rows]
