"""Split FracAtlas into ImageFolder directories, with a record of every file.

    python split_dataset.py                             # downloads FracAtlas
    python split_dataset.py --data_root FracAtlas.zip   # or its folder
    python split_dataset.py --folds 5 --split_dir data/folds
    python split_dataset.py --check                     # still as it was made?

Every file is decoded once. What cannot be decoded is excluded; so are copies
of the same pixels, and all of them if their labels differ. Near-copies share a
split. manifest.csv names each file and its fate. The same files and seed give
the same split on every machine.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

from fracture.cli import InputError, exit_status, shown
from fracture.config import Config, parse_settings, settings_parser

if __name__ == "__main__":
    with exit_status():
        PARSER = settings_parser(__doc__, "[--force|--check] ")
        PARSER.add_argument("--force", action="store_true", help="replace an existing split")
        PARSER.add_argument("--check", action="store_true", help="verify an existing split")
        CONFIG, ARGUMENTS = parse_settings(PARSER)

import yaml
from joblib import cpu_count
from tqdm import tqdm

from fracture.atomic import scratch, swap
from fracture.data.download import obtain
from fracture.data.fracatlas import BODY_PARTS, body_part, find_radiographs
from fracture.data.images import inspect
from fracture.data.manifest import (
    FILE_NAME,
    SPLITS,
    Row,
    check_splits,
    holds_split,
    join_reasons,
    write_manifest,
)
from fracture.data.near_copies import exclude_copies


def main(config: Config, force: bool, check: bool) -> None:
    split_dir = Path(config.split_dir)
    if check:
        check_splits(split_dir)
        return
    if split_dir.exists():
        if not force:
            raise InputError(f"{split_dir} exists; replace it with --force, or pass --split_dir")
        if not holds_split(split_dir):
            raise InputError(
                f"{split_dir} holds other things than a split, and is not replaced: move away what "
                "you need of it, remove the rest, and split again"
            )
    data_root = obtain(Path(config.data_root), config.data_url, config.data_md5)
    if data_root.resolve().is_relative_to(split_dir.resolve()):
        raise InputError(f"{data_root} lies in {split_dir}, which the split would replace")
    rows = read_rows(data_root)
    classes = sorted({row.label for row in rows})
    if config.positive_class not in classes:
        raise InputError(f"positive_class is {config.positive_class!r}; allowed: {classes}")
    splits = {".": assign_splits(rows, config.fractions, config.seed)}
    if k := config.folds:
        shares = Fraction(k - 2, k), Fraction(1, k), Fraction(1, k)
        turns = {f"fold-{i + 1}": Fraction(i, k) for i in range(k)}
        splits = {name: assign_splits(rows, shares, config.seed, t) for name, t in turns.items()}
    for assigned in splits.values():
        held = {(row.split, row.label) for row in assigned}
        for split, label in product(SPLITS, classes):
            if (split, label) not in held:
                raise InputError(f"{data_root}: too few images: {split} would have no {label}")
    write_splits(
        splits, data_root, split_dir, yaml.safe_dump(asdict(config), sort_keys=False), force
    )
    print_flow(splits, config.positive_class)
    print(f"\nsplit in {split_dir}, every file's fate in {FILE_NAME} there")
    print(f"next: python train.py --split_dir {split_dir / next(iter(splits))}")


def read_rows(data_root: Path) -> list[Row]:
    """A row for every file of the source, each decoded once; split is "excluded" or still ""."""
    radiographs = find_radiographs(data_root)
    with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow and hashlib release Python's lock
        found = pool.map(inspect, [radiograph.path for radiograph in radiographs])
        findings = [*tqdm(found, "reading", len(radiographs), unit=" images", disable=None)]
    rows, bad = [], {r.image for r, f in zip(radiographs, findings, strict=True) if f.fault}
    for item, finding in zip(radiographs, findings, strict=True):
        reason = f"undecodable: {finding.fault}" if finding.fault else ""
        if item.spare_of and item.spare_of not in bad:
            reason = f"copy of {item.spare_of}, the same id in the other class folder"
        split, group = ("excluded", "") if reason else ("", finding.pixels)
        reason, digest = join_reasons(reason, item.note), finding.sha256
        rows.append(Row(item.image, item.label, split, group, reason, digest, item.traits))
    return exclude_copies(rows, {finding.pixels: finding.thumbnail for finding in findings})


def assign_splits(
    rows: Sequence[Row], shares: Sequence[float | Fraction], seed: int, turn: Fraction = Fraction(0)
) -> list[Row]:
    """Give every row that is not excluded a split: whole groups, stratified by class and body part.

    The groups of a stratum stand in the order of a hash of the seed and their name, which depends
    on no library's random numbers and on no file order; the first 80 % are train, and so on.

    Args:
        rows: `split` is "excluded" or still "".
        shares: of train, val and test.
        seed: another seed, another order.
        turn: fold k of K has k/K: each stratum's order begins that much later, and so all folds
            together test every image once.

    Returns:
        The rows in the same order.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.split != "excluded":
            groups[row.group].append(row)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group, members in groups.items():
        strata[min((row.label, body_part(row.traits)) for row in members)].append(group)
    train, val, _ = (Fraction(str(share)) for share in shares)  # exact: the folds' borders meet
    split_of = {}
    for names in strata.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        total, placed = sum(len(groups[name]) for name in names), 0
        for name in names:
            middle = (Fraction(2 * placed + len(groups[name]), 2 * total) + turn) % 1
            split_of[name] = SPLITS[(middle >= train) + (middle >= train + val)]
            placed += len(groups[name])
    return [replace(row, split=row.split or split_of[row.group]) for row in rows]


def write_splits(
    splits: Mapping[str, Sequence[Row]],
    data_root: Path,
    split_dir: Path,
    settings: str,
    replace: bool = False,
) -> None:
    """Build the folders beside `split_dir` and rename them into place: never a half split.

    Args:
        splits: the rows of each split, by its folder in `split_dir`.
        data_root: where the files are.
        split_dir: where the splits go.
        settings: YAML that says how the split was made, kept beside each manifest.
        replace: what is there may go.

    Raises:
        InputError: something is there, and may not go.
    """
    with scratch(split_dir) as new:
        for name, rows in tqdm(splits.items(), "linking", unit=" splits", disable=None):
            for row in rows:
                if row.split != "excluded":
                    target = new / name / row.place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy((data_root / row.image).resolve(), target)
            write_manifest(new / name, rows)
            (new / name / "config.yaml").write_text(settings)
        swap(new, split_dir, replace)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)  # costs no disk
    except FileExistsError:  # a copy would write through the link, into the source
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def print_flow(splits: Mapping[str, Sequence[Row]], positive: str) -> None:
    """Say where the files went, as CLAIM 2024 and TRIPOD+AI ask: found, excluded and why, kept."""
    rows = next(iter(splits.values()))
    print(f"files found{len(rows):12,}")
    named = defaultdict(list)
    for row in rows:
        if row.split == "excluded":
            named[row.reason.split()[0].strip(":")].append(Path(row.image).name)
    for reason, names in named.items():
        few = shown(", ".join(names[:2])) + (", ..." if len(names) > 2 else "")
        print(f"  {reason:13}{len(names):8,}  {few}")
    decided = [row for row in rows if "label:" in row.reason]
    if decided:
        first = shown(Path(decided[0].image).name)
        print(f"label decided{len(decided):10,}  {first}, see {FILE_NAME}")
    kept = [row for row in rows if row.split != "excluded"]
    near = [size for size in Counter(row.group for row in kept).values() if size > 1]
    print(f"kept{len(kept):19,}  {sum(near)} of them in {len(near)} groups of near-copies")

    lines = {"kept": kept}
    for name, assigned in splits.items():
        for split in SPLITS if len(splits) == 1 else ("test",):
            title = split if len(splits) == 1 else name
            lines[title] = [row for row in assigned if row.split == split]
    parts = [p for p in (*BODY_PARTS, "unknown") if any(body_part(r.traits) == p for r in kept)]
    print(f"\nimages ({positive})" + (", of each fold those to test" if len(splits) > 1 else ""))
    print(f"{'':8}" + "".join(f"{heading:>12}" for heading in ("all", *parts)))
    for title, members in lines.items():
        chosen = [members, *([r for r in members if body_part(r.traits) == p] for p in parts)]
        cells = (f"{len(c):,} ({sum(r.label == positive for r in c)})" for c in chosen)
        print(f"{title:8}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS.force, ARGUMENTS.check)
