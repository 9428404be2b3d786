"""Split FracAtlas into ImageFolder directories, with a record of every file.

    python split_dataset.py                             # downloads FracAtlas
    python split_dataset.py --data_root FracAtlas.zip   # or its folder
    python split_dataset.py --folds 5 --split_dir data/folds

Every file is decoded once. Files that cannot be decoded are excluded; so are copies of the same
pixels, and all of them if their labels differ. Near-copies share a split. manifest.csv says what
became of each file. The same files and seed give the same split on every machine.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import Namespace

from fracture.cli import InputError, run_script
from fracture.config import SplitConfig
from fracture.settings import parse_settings, settings_parser


def arguments(argv: Sequence[str] | None = None) -> tuple[SplitConfig, Namespace]:
    parser = settings_parser(SplitConfig, __doc__, "[--force] ")
    parser.add_argument("--force", action="store_true", help="replace an existing split")
    parser.add_argument("--download", action="store_true", help="get FracAtlas if it is not there")
    config, options = parse_settings(SplitConfig, parser, argv)
    options.download |= config.data_root == parser.get_default("data_root")
    return config, options


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before the slow imports

from fracture.data.download import fetch_dataset
from fracture.data.fracatlas import BODY_PARTS, body_part
from fracture.data.manifest import FILE_NAME, SPLITS, Row, refuse_strays
from fracture.data.patients import join_patients
from fracture.data.splitting import make_splits, scan_dataset, write_splits


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    split_dir = Path(config.split_dir)
    if split_dir.exists():
        if not options.force:
            raise InputError(f"{split_dir} exists; replace it with --force, or pass --split_dir")
        refuse_strays(split_dir)
    source = Path(config.data_root), config.data_url, config.data_md5
    data_root = fetch_dataset(*source, options.download)
    rows = scan_dataset(data_root, config.positive_class, config.negative_class)
    if config.groups:
        rows = join_patients(rows, config.groups, data_root)
    splits = make_splits(rows, config)
    write_splits(splits, data_root, config, overwrite=options.force)

    print_flow(rows, "near-copies" if config.groups is None else "films that belong together")
    print_sizes(splits, config.positive_class)
    print(f"\nsplit in {split_dir}; {FILE_NAME} there says what became of each file")
    files = "".join(f" --config {file}" for file in options.config or [])
    print(f"next: python train.py{files} --split_dir {split_dir / next(iter(splits))}")


def print_flow(rows: Sequence[Row], related: str) -> None:
    """Files found, excluded and why, and kept, as CLAIM 2024 and TRIPOD+AI ask."""
    print(f"files found{len(rows):12,}")
    reasons = Counter(row.reason.split()[0] for row in rows if row.split == "excluded")
    for reason, count in reasons.items():
        print(f"  {reason.strip(':'):13}{count:8,}")
    if decided := sum("label:" in row.reason for row in rows):
        print(f"label decided{decided:10,}")
    sizes = Counter(row.group for row in rows if row.split != "excluded").values()
    near = [size for size in sizes if size > 1]
    print(f"kept{sum(sizes):19,}  {sum(near)} of them in {len(near)} groups of {related}")


def print_sizes(splits: Mapping[str, Sequence[Row]], positive: str) -> None:
    """A line for each part of the split, or for each fold's test part, by body part."""
    folds = len(splits) > 1
    lines = {"kept": [row for row in next(iter(splits.values())) if row.split != "excluded"]}
    for name, rows in splits.items():
        for split in ("test",) if folds else SPLITS:
            lines[name if folds else split] = [row for row in rows if row.split == split]
    parts = sorted({body_part(r.traits) for r in lines["kept"]}, key=[*BODY_PARTS, "unknown"].index)
    print(f"\nimages ({positive})" + (", the test part of each fold" if folds else ""))
    print(" " * 8 + "".join(f"{heading:>12}" for heading in ("all", *parts)))
    for title, rows in lines.items():
        columns = [rows, *([r for r in rows if body_part(r.traits) == part] for part in parts)]
        cells = (f"{len(c):,} ({sum(r.label == positive for r in c)})" for c in columns)
        print(f"{title:8}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    run_script(main)
