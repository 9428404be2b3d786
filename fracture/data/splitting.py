"""From files to a split: scan them, assign whole groups of copies, link them into folders."""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import yaml
from joblib import cpu_count  # honours a container's quota, unlike os.cpu_count
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from fracture.atomic import publish, staging_dir
from fracture.cli import InputError
from fracture.config import Config
from fracture.data.fracatlas import CLASSES, body_part, find_radiographs, resolve_labels
from fracture.data.images import scan_image
from fracture.data.manifest import SPLITS, Row, write_manifest
from fracture.data.near_copies import exclude_copies

Splits = dict[str, list[Row]]  # the rows of each split, by the name of its folder
Share = float | Fraction  # folds take exact fractions, so that they meet without a gap


def scan_dataset(
    data_root: Path, positive: str = CLASSES[0], negative: str | None = None
) -> list[Row]:
    """A row for every file of the source, each decoded once.

    Its split is "excluded", the publisher's, or still "".

    Args:
        data_root: from `fetch_dataset`.
        positive: as for `find_radiographs`.
        negative: likewise.
    """
    rows = find_radiographs(data_root, positive, negative)
    paths = [data_root / row.image for row in rows]
    # Threads suffice: Pillow and hashlib release Python's lock.
    reports = thread_map(scan_image, paths, max_workers=cpu_count(), desc="reading", disable=None)
    for i, report in enumerate(reports):
        rows[i] = replace(rows[i], group=report.pixels, sha256=report.sha256)
        if report.error:
            rows[i] = replace(rows[i], split="excluded", reason=f"undecodable: {report.error}")
    thumbnails = {report.pixels: report.thumbnail for report in reports}
    return exclude_copies(resolve_labels(rows, data_root), thumbnails)


def assign_splits(
    rows: Sequence[Row], fractions: Sequence[Share], seed: int, fold_offset: Share = 0
) -> list[Row]:
    """Give every row that is not excluded a split: whole groups, stratified by class and body part.

    The groups of a stratum are ordered by a hash of the seed and their name, which depends on no
    library's random numbers and on no file order; the first 80 % are train, and so on.

    Args:
        rows: those whose `split` is "" get one.
        fractions: of train, val and test.
        seed: another seed, another order.
        fold_offset: k / K for fold k of K: each stratum's order starts that much later, so that
            all folds together test every image once.

    Returns:
        The rows in the same order.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.split:
            groups[row.group].append(row)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group, members in groups.items():
        strata[min((row.label, body_part(row.traits)) for row in members)].append(group)
    train, val, _ = (Fraction(str(fraction)) for fraction in fractions)  # exact, so folds meet
    split_of = {}
    for names in strata.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        total, placed = sum(len(groups[name]) for name in names), 0
        for name in names:
            middle = (Fraction(2 * placed + len(groups[name]), 2 * total) + fold_offset) % 1
            split_of[name] = SPLITS[(middle >= train) + (middle >= train + val)]
            placed += len(groups[name])
    return [replace(row, split=row.split or split_of[row.group]) for row in rows]


def make_splits(rows: Sequence[Row], config: Config) -> Splits:
    """The rows of the one split, by the name ".", or of each fold, by "fold-1" to "fold-K".

    Raises:
        InputError: there is no such positive class, or a part of a split would lack a class.
    """
    classes = sorted({row.label for row in rows})
    if config.positive_class not in classes:
        hint = "or pass another --data_root"
        raise InputError(f"positive_class is {config.positive_class!r}; allowed: {classes}, {hint}")
    k = config.folds
    fractions = (Fraction(k - 2, k), Fraction(1, k), Fraction(1, k)) if k else config.fractions
    published = {row.split for row in rows} - {"", "excluded"}
    if published and k:
        raise InputError("the data is split into train and test already; leave out --folds")
    if published and "val" not in published:
        train, val, _ = (Fraction(str(fraction)) for fraction in config.fractions)
        fractions = (train / (train + val), val / (train + val), Fraction(0))
        print(f"no val folder: {float(fractions[1]):.0%} of train becomes val")
        rows = [replace(row, split="") if row.split == "train" else row for row in rows]
    names = [f"fold-{i + 1}" for i in range(k)] or ["."]
    splits = {
        name: assign_splits(rows, fractions, config.seed, Fraction(i, len(names)))
        for i, name in enumerate(names)
    }
    needed = {(split, label) for split in SPLITS for label in classes}
    for assigned in splits.values():
        if lacking := needed - {(row.split, row.label) for row in assigned}:
            raise InputError("too few images: {} would have no {}".format(*min(lacking)))
    return splits


def write_splits(splits: Splits, data_root: Path, config: Config, overwrite: bool = False) -> None:
    """Build the folders beside `split_dir` and rename them into place: never half a split.

    Args:
        splits: from `make_splits`.
        data_root: where the files are.
        config: says where the splits go, and is kept beside each manifest.
        overwrite: replace what is there.

    Raises:
        InputError: something is there and must not be replaced.
    """
    target = Path(config.split_dir)
    settings = yaml.safe_dump(asdict(config) | {"data_root": str(data_root)}, sort_keys=False)
    with staging_dir(target) as new:
        for name, rows in tqdm(splits.items(), "linking", unit=" splits", disable=None):
            for row in rows:
                if row.split != "excluded":
                    path = new / name / row.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy((data_root / row.image).resolve(), path)
            write_manifest(new / name, rows)
            (new / name / "config.yaml").write_text(settings)
        publish(new, target, overwrite)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard links cost no disk; another file system gets a copy."""
    try:
        target.hardlink_to(source)
    except FileExistsError:  # a copy would write through the existing link, into the source
        raise
    except OSError:
        shutil.copyfile(source, target)
