"""Split FracAtlas into ImageFolder directories, with a record of every file.

    python split_dataset.py                             # downloads FracAtlas
    python split_dataset.py --data_root FracAtlas.zip   # or its folder
    python split_dataset.py --folds 5 --split_dir data/folds
    python split_dataset.py --check                     # unchanged since it was made?

Every file is decoded once. Files that cannot be decoded are excluded; so are
copies of the same pixels, and all of them if their labels differ. Near-copies
share a split. manifest.csv says what became of each file. The same files and
seed give the same split on every machine.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import Namespace

from fracture.cli import InputError, escape_controls, run_script
from fracture.config import Config, parse_settings, settings_parser


def arguments(argv: Sequence[str] | None = None) -> tuple[Config, Namespace]:
    parser = settings_parser(__doc__, "[--force|--check] ")
    parser.add_argument("--force", action="store_true", help="replace an existing split")
    parser.add_argument("--check", action="store_true", help="verify an existing split")
    return parse_settings(parser, argv)


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before the slow imports

from fracture.data.download import fetch_dataset
from fracture.data.fracatlas import BODY_PARTS, body_part
from fracture.data.manifest import FILE_NAME, SPLITS, Row, check_splits, holds_split
from fracture.data.splitting import make_splits, scan_dataset, write_splits


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    split_dir = Path(config.split_dir)
    if options.check:
        check_splits(split_dir)
        return
    if split_dir.exists() and not options.force:
        raise InputError(f"{split_dir} exists; replace it with --force, or pass --split_dir")
    if split_dir.exists() and not holds_split(split_dir):
        raise InputError(f"{split_dir} holds other files than a split; move those away first")

    data_root = fetch_dataset(Path(config.data_root), config.data_url, config.data_md5)
    if data_root.resolve().is_relative_to(split_dir.resolve()):
        raise InputError(f"{data_root} lies in {split_dir}, which the split would replace")
    rows = scan_dataset(data_root)
    classes = sorted({row.label for row in rows})
    if config.positive_class not in classes:
        raise InputError(f"positive_class is {config.positive_class!r}; allowed: {classes}")
    splits = make_splits(rows, config)
    write_splits(splits, data_root, config, overwrite=options.force)

    print_flow(rows)
    print_sizes(splits, config.positive_class)
    print(f"\nsplit in {split_dir}; {FILE_NAME} there says what became of each file")
    print(f"next: python train.py --split_dir {split_dir / next(iter(splits))}")


def print_flow(rows: Sequence[Row]) -> None:
    """Files found, excluded and why, and kept, as CLAIM 2024 and TRIPOD+AI ask."""
    print(f"files found{len(rows):12,}")
    excluded = defaultdict(list)
    for row in rows:
        if row.split == "excluded":
            excluded[row.reason.split()[0].strip(":")].append(Path(row.image).name)
    for reason, names in excluded.items():
        few = escape_controls(", ".join(names[:2])) + (", ..." if len(names) > 2 else "")
        print(f"  {reason:13}{len(names):8,}  {few}")
    if decided := [Path(row.image).name for row in rows if "label:" in row.reason]:
        print(f"label decided{len(decided):10,}  {escape_controls(decided[0])}, see {FILE_NAME}")
    kept = [row for row in rows if row.split != "excluded"]
    near = [size for size in Counter(row.group for row in kept).values() if size > 1]
    print(f"kept{len(kept):19,}  {sum(near)} of them in {len(near)} groups of near-copies")


def print_sizes(splits: Mapping[str, Sequence[Row]], positive: str) -> None:
    """A line for each part of the split, or for each fold's test part, by body part."""
    folds = len(splits) > 1
    kept = [row for row in next(iter(splits.values())) if row.split != "excluded"]
    lines = {"kept": kept}
    for name, rows in splits.items():
        for split in ("test",) if folds else SPLITS:
            lines[name if folds else split] = [row for row in rows if row.split == split]
    parts = [p for p in (*BODY_PARTS, "unknown") if any(body_part(r.traits) == p for r in kept)]
    print(f"\nimages ({positive})" + (", the test part of each fold" if folds else ""))
    print(f"{'':8}" + "".join(f"{heading:>12}" for heading in ("all", *parts)))
    for title, rows in lines.items():
        columns = [rows, *([r for r in rows if body_part(r.traits) == part] for part in parts)]
        cells = (f"{len(c):,} ({sum(r.label == positive for r in c)})" for c in columns)
        print(f"{title:8}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    run_script(main)
