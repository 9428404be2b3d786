"""Which films belong to one patient, so that they share a split."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from fracture.cli import InputError
from fracture.data.dicom import patient_of
from fracture.data.manifest import Row


def join_patients(rows: Sequence[Row], source: str, data_root: Path) -> list[Row]:
    """Join the groups of copies of each patient to one group; print what that makes.

    Args:
        rows: from `exclude_copies`; those excluded stay as they are.
        source: the setting `groups`.
        data_root: where the files are.

    Returns:
        The rows in the same order. A group keeps the name of one of its films: no patient's name
        is written anywhere.

    Raises:
        InputError: the table is malformed, names no film, or has an ambiguous name.
    """
    kept = [row for row in rows if row.split != "excluded"]
    patients = find_patients(kept, source, data_root)
    alone = [row.image for row in kept if row.image not in patients]
    if len(alone) == len(kept):
        raise InputError(f"groups is {source}: it gives none of the {len(kept):,} films a group")
    groups_of: dict[str, set[str]] = defaultdict(set)
    for row in kept:
        if row.image in patients:
            groups_of[patients[row.image]].add(row.group)
    together = {row.group: {row.group} for row in kept}  # the groups of copies that are one group
    for groups in groups_of.values():
        union = set().union(*(together[group] for group in groups))
        together |= dict.fromkeys(union, union)
    joined = {group: min(union) for group, union in together.items()}
    labels = defaultdict(set)
    for row in kept:
        labels[joined[row.group]].add(row.label)
    both = sum(len(found) > 1 for found in labels.values())
    print(f"groups: {len(labels):,} from {len(kept):,} films; {both:,} with films of both classes")
    if alone:
        print(f"films without a group, each on its own: {len(alone):,}, such as {alone[0]}")
    return [replace(row, group=joined.get(row.group, row.group)) for row in rows]


def find_patients(rows: Sequence[Row], source: str, data_root: Path) -> dict[str, str]:
    """The patient of each film that has one, by `Row.image`."""
    if source == "folder":  # one below the class folder
        return {
            row.image: str(PurePosixPath(row.image).parent)
            for row in rows
            if len(PurePosixPath(row.name).parts) > 2
        }
    if source == "patient_id":
        found = {row.image: patient_of(data_root / row.image) for row in rows}
        return {image: name for image, name in found.items() if name}
    try:
        with Path(source).open(newline="", encoding="utf-8-sig") as file:
            table = {line["image"]: line["group"] for line in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"groups: {source} needs the columns image and group") from error
    except OSError as error:
        hint = "allowed: a table, folder or patient_id"
        raise InputError(f"groups: {source}: {error.strerror}; {hint}") from error
    films: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        films[row.image].add(row.image)
        films[PurePosixPath(row.image).name].add(row.image)
    fits = {image: sorted(films[image]) for image in table}
    for image, paths in fits.items():
        if len(paths) > 1:
            advice = f"such as {paths[0]} and {paths[1]}; write these paths"
            raise InputError(f"groups: {source}: {image} fits {len(paths):,} films, {advice}")
    if unknown := [image for image, paths in fits.items() if not paths]:
        print(f"{source}: {len(unknown):,} images are not here, such as {unknown[0]}")
    return {fits[image][0]: group for image, group in table.items() if fits[image] and group}
