"""Split FracAtlas into ImageFolder directories, with a record of every file.

    python split_dataset.py --data_root FracAtlas     # -> data/split
    python split_dataset.py --seed 1 --split_dir data/split-1
    python split_dataset.py --check                   # is it still as it was made?

Every file is decoded once. What cannot be decoded is excluded, and so are copies
of the same pixels, all of them if their labels differ; manifest.csv names each.
The same files and seed give the same split on every machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from fracture.config import Config, parse_settings, settings_parser
from fracture.errors import InputError, exit_status

if __name__ == "__main__":
    with exit_status():
        PARSER = settings_parser(__doc__, "[--force | --check] ")
        PARSER.add_argument("--force", action="store_true", help="replace an existing split")
        PARSER.add_argument("--check", action="store_true", help="verify an existing split")
        CONFIG, ARGUMENTS = parse_settings(PARSER)

import yaml
from tqdm import tqdm

from fracture.fracatlas import find_radiographs
from fracture.images import inspect
from fracture.manifest import FILE_NAME, SPLIT_ANEW, SPLITS, Row, read_split, write_manifest


def main(config: Config, force: bool, check: bool) -> None:
    data_root, split_dir = Path(config.data_root), Path(config.split_dir)
    if check:
        check_split(split_dir)
        return
    if split_dir.exists():
        if not force:
            raise InputError(f"{split_dir} exists; replace it with --force, or pass --split_dir")
        inside = {path.name for path in split_dir.iterdir()}
        if FILE_NAME not in inside or inside - {*SPLITS, FILE_NAME, "config.yaml"}:
            raise InputError(f"{split_dir} holds other things than a split: not replaced")
    rows = exclude_copies(read_rows(data_root))
    rows = assign_splits(rows, config.fractions, config.seed)
    held = {(row.split, row.label) for row in rows}
    for split, label in product(SPLITS, sorted({row.label for row in rows})):
        if (split, label) not in held:
            raise InputError(f"{data_root}: too few images: {split} would hold none of {label}")
    write_split(rows, data_root, split_dir, yaml.safe_dump(asdict(config), sort_keys=False))
    print_flow(rows)
    print(f"\nsplit in {split_dir}, every file's fate in {split_dir / FILE_NAME}")
    print(f"next: python train.py --split_dir {split_dir}")


def check_split(split_dir: Path) -> None:
    """Verify that a split's files are those of its manifest, and that no copy straddles it.

    Raises:
        InputError: a file is missing, extra, changed or in another class, or a group is torn apart.
    """
    rows = read_split(split_dir, *SPLITS).rows
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda row: inspect(split_dir / row.place).sha256, rows)
        for row, digest in zip(
            rows, tqdm(digests, "checking", len(rows), disable=None), strict=True
        ):
            if digest != row.sha256:
                raise InputError(f"{split_dir / row.place} has changed; {SPLIT_ANEW}")
    home: dict[str, str] = {}
    for row in rows:
        if home.setdefault(row.group, row.split) != row.split:
            raise InputError(f"{row.place}: a copy of it is in {home[row.group]}; {SPLIT_ANEW}")
    print(f"{split_dir}: {len(rows):,} files, each as {FILE_NAME} says, no copy in two splits")


def read_rows(data_root: Path) -> list[Row]:
    """A row for every file of the source, each decoded once; the undecodable are excluded.

    Files of identical pixels form a group.
    """
    radiographs = find_radiographs(data_root)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and hashlib release Python's lock
        findings = pool.map(inspect, [radiograph.path for radiograph in radiographs])
        bar = tqdm(findings, "reading", len(radiographs), unit=" images", disable=None)
        return [
            Row(r.image, r.label, "excluded", "", f"undecodable: {f.fault}", f.sha256)
            if f.fault
            else Row(r.image, r.label, "", f.pixels[:16], "", f.sha256)
            for r, f in zip(radiographs, bar, strict=True)
        ]


def exclude_copies(rows: Sequence[Row]) -> list[Row]:
    """Of every group keep the first image by name; where its labels contradict each other, none.

    A copy would count twice, and one of two labels on the same pixels is wrong: nobody knows which.

    Args:
        rows: `group` tells which images are copies of each other, "" for the undecodable.

    Returns:
        The rows in the same order, copies with the reason "copy of ..." or "contradictory: ...".
    """
    members = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.image):
        members[row.group].append(row)

    def judged(row: Row) -> Row:
        first = members[row.group][0]
        if row.split == "excluded" or len(members[row.group]) == 1:
            return row
        if others := [other for other in members[row.group] if other.label != row.label]:
            reason = f"contradictory: {others[0].image} has the same pixels"
            return replace(row, split="excluded", reason=reason)
        if row == first:
            return row
        return replace(row, split="excluded", reason=f"copy of {first.image}")

    return [judged(row) for row in rows]


def assign_splits(rows: Sequence[Row], fractions: Sequence[float], seed: int) -> list[Row]:
    """Give every row that is not excluded a split: whole groups, stratified by class.

    Groups are taken in the order of a hash of the seed and their name, which depends on no
    library's random numbers and on no file order; the first 80 % of a class are train, and so on.

    Args:
        rows: `split` is "excluded" or still "".
        fractions: shares of train, val and test.
        seed: another seed, another split.

    Returns:
        The rows in the same order.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split != "excluded":
            groups[row.group].append(row)
    strata: dict[str, list[str]] = defaultdict(list)
    for group, members in groups.items():
        strata[min(row.label for row in members)].append(group)
    split_of = {}
    for names in strata.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        total, placed = sum(len(groups[name]) for name in names), 0
        for name in names:
            middle = (placed + len(groups[name]) / 2) / total
            cuts = fractions[0], fractions[0] + fractions[1]
            split_of[name] = SPLITS[sum(middle >= cut for cut in cuts)]
            placed += len(groups[name])
    return [replace(row, split=row.split or split_of[row.group]) for row in rows]


def write_split(rows: Sequence[Row], data_root: Path, split_dir: Path, settings: str) -> None:
    """Build the folders beside `split_dir` and rename them into place: never a half split.

    Args:
        rows: where each file goes.
        data_root: where they are.
        split_dir: replaced if it exists.
        settings: YAML that says how the split was made, kept beside the manifest.
    """
    split_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=split_dir.parent, prefix=f".{split_dir.name}-") as scratch:
        new = Path(scratch) / "new"
        for row in rows:
            if row.split != "excluded":
                target = new / row.place
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy((data_root / row.image).resolve(), target)
        write_manifest(new / FILE_NAME, rows)
        (new / "config.yaml").write_text(settings)
        if split_dir.exists():
            split_dir.rename(Path(scratch) / "old")
        new.rename(split_dir)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)  # costs no disk
    except FileExistsError:  # a copy would write through the link, into the source
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def print_flow(rows: Sequence[Row]) -> None:
    """Say where the files went, by class, and why some were excluded."""
    classes = sorted({row.label for row in rows})
    counts = Counter((row.split, row.label) for row in rows)
    print(f"{'':10}{'images':>8}" + "".join(f"{name:>16}" for name in classes))
    for split in (*SPLITS, "excluded"):
        by_class = [counts[split, name] for name in classes]
        print(f"{split:10}{sum(by_class):8,}" + "".join(f"{count:16,}" for count in by_class))
    print()
    named = defaultdict(list)
    for row in rows:
        if row.split == "excluded":
            named[row.reason.split()[0].strip(":")].append(Path(row.image).name)
    for reason, names in named.items():
        few = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
        print(f"excluded as {reason:14}{len(names):5,}: {few}")


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS.force, ARGUMENTS.check)
