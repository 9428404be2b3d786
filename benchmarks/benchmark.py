"""Time the textbook's loop against this project, on the same images.

    python -m benchmarks.benchmark                       # B6, 128 images, 20 epochs
    python -m benchmarks.benchmark --images 512 --backbone efficientnet-lite0 --out b.json

The textbook decodes every image and runs the whole network in every epoch,
forward only through the frozen part. It runs one epoch here, scaled up to
--epochs; "kind" gives it workers, channels_last and, on a GPU, bfloat16. Ours
is measured whole: cold with an empty cache, and warm; then stage by stage.
Every job has a process of its own, imports apart, and is repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from tqdm import tqdm

from benchmarks.stages import decode, forward, imports, recipe_of, script, whole_pass
from benchmarks.textbook import BATCH, Task, textbook
from fracture.data.manifest import Split, read_split
from fracture.data.synthetic import draw_data_set
from fracture.features.cache import FeatureCache, StoredFeatures
from fracture.features.extract import cached_features
from fracture.models.backbone import Head, feature_width, head_logits
from split_dataset import assign_splits, read_rows, write_splits
from train import shuffled, train_epoch, validate


def ours(task: Task, cache: Path) -> float:
    """Seconds of everything after the imports: features, head, all epochs with validation."""
    start = perf_counter()
    device = torch.device(task.device)
    features, rows, _ = cached_features(task.split, recipe_of(task), cache, "auto", device)
    is_train = torch.tensor([row.split == "train" for row in rows])
    train_head(features, torch.tensor(task.labels), is_train, task.epochs)
    return perf_counter() - start


def train_head(
    features: StoredFeatures, labels: torch.Tensor, is_train: torch.Tensor, epochs: int
) -> None:
    """As train.py does it, on one thread."""
    torch.set_num_threads(1)
    head = Head(features.width, 0.5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    train_set, val_set = features.subset(is_train), features.subset(~is_train)
    for _ in range(epochs):
        train_epoch(head, shuffled(train_set, labels[is_train], BATCH), optimizer)
        validate(head_logits(head, val_set), labels[~is_train])


def cold(task: Task) -> float:
    with tempfile.TemporaryDirectory() as cache:
        return ours(task, Path(cache))


def warm(task: Task) -> float:
    with tempfile.TemporaryDirectory() as cache:
        ours(task, Path(cache))
        return ours(task, Path(cache))


def head_alone(task: Task) -> float:
    """20 epochs over as many made-up features as FracAtlas' training and validation had."""
    with tempfile.TemporaryDirectory() as folder:
        width = feature_width(task.backbone)
        cache = FeatureCache(Path(folder), {"backbone": "made-up"}, width)
        cache.append([f"{i:064x}" for i in range(3266)], torch.randn(3266, width).numpy())
        features = StoredFeatures(cache, torch.arange(3266))
        labels, is_train = torch.randint(2, (3266,)), torch.arange(3266) >= 16
        train_head(features, labels, is_train, 1)  # torch imports more with the first step
        start = perf_counter()
        train_head(features, labels, is_train, 20)
        return perf_counter() - start


def measured(job: Callable[[Task], float], task: Task) -> tuple[float, float]:
    """Seconds and peak resident memory in MiB of a job in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_memory, job, task).result()


def _with_memory(job: Callable[[Task], float], task: Task) -> tuple[float, float]:
    multiprocessing.set_start_method(None, force=True)  # workers as everywhere else, not spawned
    with Path(os.devnull).open("w") as void, redirect_stdout(void), redirect_stderr(void):
        seconds = job(task)
    return seconds, peak_memory()


def peak_memory() -> float:
    """Of this process, in MiB. ru_maxrss would be the parent's where that had more."""
    return int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


SETTINGS = ("--split_dir", "split", "--backbone", "{backbone}", "--device", "{device}")
TRAIN = ("train.py", *SETTINGS, "--weights", "none", "--wandb_mode", "offline")
INFER = ("infer.py", "{film}", "--device", "{device}")

# Each line of the table: its title, the job, and the line that its speed is compared with.
JOBS: dict[str, tuple[Callable[[Task], float], str]] = {
    "textbook": (textbook, ""),
    "textbook, kind": (partial(textbook, kind=True), "textbook"),
    "ours, cold": (cold, "textbook"),
    "ours, warm": (warm, "textbook"),
    "decode, plain Pillow": (partial(decode, plain=True), ""),
    "decode, ours": (partial(decode, plain=False), "decode, plain Pillow"),
    "backbone, as it comes": (partial(forward, plain=True), ""),
    "backbone, ours": (partial(forward, plain=False), "backbone, as it comes"),
    "decode and backbone": (whole_pass, "backbone, ours"),
    "head, 3,266 features": (head_alone, ""),
    "start: imports": (imports, ""),
    "start: train.py, warm": (partial(script, arguments=TRAIN), "start: imports"),
    "start: train.py --help": (partial(script, arguments=("train.py", "--help")), "start: imports"),
    "start: one image": (partial(imports, forward=True), ""),
    "start: infer.py, one": (partial(script, arguments=INFER), "start: one image"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_root", type=Path, default=Path("data/FracAtlas"), help="else images are drawn")
    add("--images", type=int, default=128, help="how many [%(default)s]")
    add("--epochs", type=int, default=20, help="of the whole protocol [%(default)s]")
    add("--backbone", default="efficientnet-b6", help="with random weights [%(default)s]")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="[%(default)s]")
    add("--repeats", type=int, default=3, help="of every job [%(default)s]")
    add("--out", type=Path, help="write all numbers to this .json file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split, kind = take_images(arguments.data_root, arguments.images, Path(folder))
        task = Task(Path(folder), split, arguments.backbone, arguments.epochs, arguments.device)
        script(task, TRAIN)  # leaves a cache and a run
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in JOBS}
        rounds = [name for _ in range(arguments.repeats) for name in JOBS]  # interleaved
        for name in tqdm(rounds, "measuring", disable=None):
            seconds, memory = measured(JOBS[name][0], task)
            scale = task.epochs if name.startswith("textbook") else 1
            times[name].append((seconds * scale, memory))
    report = table(times, len(split.rows), task)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "versions": {name: version(name) for name in ("torch", "pillow", "numpy")},
    }
    print(
        f"\n{len(split.rows)} {kind} images, {task.epochs} epochs, {task.backbone} with RANDOM "
        f"weights, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"
    )
    print("\n".join(report))
    print("the textbook's seconds are one epoch's, times the epochs; compared are: ours with the")
    print("textbook, stages with the line above, starts with the imports (0.4: 2.5 times as long)")
    if arguments.out:
        content = {"machine": machine, "settings": vars(arguments), "times": times}
        arguments.out.write_text(json.dumps(content, indent=2, default=str) + "\n")


def take_images(data_root: Path, count: int, folder: Path) -> tuple[Split, str]:
    """Split some images, from the data set or else drawn, into eight ninths and one to validate."""
    kind = "real"
    if not data_root.is_dir():
        data_root, kind = folder / "drawn", "DRAWN"
        draw_data_set(data_root, count + count // 4 + 8)  # of which some are copies or damaged
    usable = [row for row in read_rows(data_root) if not row.split]
    random.Random(0).shuffle(usable)
    rows = assign_splits(usable[:count], (Fraction(8, 9), Fraction(1, 9), Fraction(0)), 0)
    write_splits({".": rows}, data_root, folder / "split", "")
    return read_split(folder / "split", "train", "val"), kind


def table(times: Mapping[str, Sequence[tuple[float, float]]], count: int, task: Task) -> list[str]:
    """Lines of text: median seconds, images/s, ratio with its spread over the repeats, memory."""
    lines = [f"{'':24}{'seconds':>10}{'images/s':>12}{'times as fast':>26}{'MiB':>8}"]
    for name, results in times.items():
        seconds = [result[0] for result in results]
        passed = count * (task.epochs if name.startswith(("textbook", "ours")) else 1)
        ratio = ""
        if base := JOBS[name][1]:
            ratios = [b[0] / s for b, s in zip(times[base], seconds, strict=True)]
            ratio = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        rate = "" if name.startswith(("head", "start")) else f"{passed / median(seconds):,.1f}"
        memory = "" if name.startswith("start") else f"{max(r[1] for r in results):,.0f}"
        lines.append(f"{name:24}{median(seconds):10.2f}{rate:>12}{ratio:>26}{memory:>8}")
    return lines


if __name__ == "__main__":
    main()
