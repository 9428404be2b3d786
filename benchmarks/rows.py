"""How the training of a head grows with the number of cached features; not a test.

    python -m benchmarks.rows FOLDER        # takes 9.3 GB there while it runs

The features are made up, of EfficientNet-B6's width. Each number of rows has a process of its own.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.benchmark import peak_memory
from fracture.features.cache import BLOCK, FeatureCache, StoredFeatures
from fracture.models.backbone import Head, head_logits
from train import shuffled, train_epoch

WIDTH = 2304


def make_up(folder: Path, rows: int) -> None:
    cache, rng = FeatureCache(folder, {"backbone": "made-up"}, WIDTH), np.random.default_rng(0)
    for start in tqdm(range(0, rows, BLOCK), f"making {rows:,} rows", leave=False):
        count = min(BLOCK, rows - start)
        digests = [f"{start + i:064x}" for i in range(count)]
        cache.append(digests, rng.random((count, WIDTH), np.float32))


def train(folder: Path) -> tuple[float, float, float, float]:
    """Seconds to find the rows, of an epoch over nine tenths, to judge the rest; peak MiB."""
    torch.set_num_threads(1)
    start = perf_counter()
    cache = FeatureCache(folder, {"backbone": "made-up"}, WIDTH)
    features = StoredFeatures(cache, torch.tensor([*cache.find().values()]))
    found = perf_counter() - start
    labels, is_train = torch.arange(len(features)) % 2, torch.rand(len(features)) < 0.9
    head = Head(WIDTH, 0.5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    few = torch.arange(len(features)) < 64
    train_epoch(head, shuffled(features.subset(few), labels[few], 16), optimizer)  # imports more
    start = perf_counter()
    train_epoch(head, shuffled(features.subset(is_train), labels[is_train], 16), optimizer)
    epoch = perf_counter() - start
    start = perf_counter()
    head_logits(head, features.subset(~is_train))
    judged = perf_counter() - start
    return found, epoch, judged, peak_memory()


def main() -> None:
    print(f"{'rows':>10}{'find, s':>10}{'epoch, s':>10}{'ms a row':>10}{'rest, s':>10}{'MiB':>8}")
    for rows in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
            make_up(Path(folder), rows)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                found, epoch, judged, memory = pool.submit(train, Path(folder)).result()
        cost = epoch / rows / 0.9 * 1000
        print(f"{rows:10,}{found:10.2f}{epoch:10.2f}{cost:10.4f}{judged:10.2f}{memory:8,.0f}")


if __name__ == "__main__":
    main()
