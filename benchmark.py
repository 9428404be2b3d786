"""Time the textbook's loop against this project, on the same images.

    python benchmark.py                       # B6, 128 images, 20 epochs
    python benchmark.py --images 512 --backbone efficientnet-lite0 --out b.json

The textbook decodes every image and runs the whole network in every epoch,
forward only through the frozen part. It runs one epoch here, scaled up to
--epochs; "kind" gives it workers, channels_last and bfloat16 as well. Ours is
measured whole: cold with an empty cache, and warm. Every job has a process of
its own, imports apart, and is repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from tqdm import tqdm

from fracture.demo import draw_data_set
from fracture.features import Recipe, cached_features, pick_device
from fracture.fracatlas import CLASSES, find_radiographs
from fracture.images import inspect, load_image
from fracture.manifest import Row, Split
from fracture.model import Head, build_backbone, feature_width, find_weights, library
from fracture.textbook import BATCH, PlainImages, Task, textbook
from split_dataset import link_or_copy
from train import shuffled, train_epoch, validate


def ours(task: Task, cache: Path) -> float:
    """Seconds of everything after the imports: features, head, all epochs with validation."""
    device, precision = pick_device(task.device, "auto")
    start = perf_counter()
    weights = find_weights(task.backbone, "none", 0)
    recipe = Recipe(task.backbone, weights, 224, "squash", precision)
    features, _, _ = cached_features(task.split, recipe, cache, BATCH, task.workers, device)
    train_head(features, torch.tensor(task.labels), task.train_images, task.epochs)
    return perf_counter() - start


def train_head(features: torch.Tensor, labels: torch.Tensor, cut: int, epochs: int) -> None:
    head = Head(features.shape[1], 0.5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    for _ in range(epochs):
        train_epoch(head, shuffled(features[:cut], labels[:cut], BATCH), optimizer)
        validate(head, features[cut:], labels[cut:])


def cold(task: Task) -> float:
    with tempfile.TemporaryDirectory() as cache:
        return ours(task, Path(cache))


def warm(task: Task) -> float:
    with tempfile.TemporaryDirectory() as cache:
        ours(task, Path(cache))
        return ours(task, Path(cache))


def decode(task: Task, plain: bool) -> float:
    """Seconds on one core to turn files into squares."""
    torch.set_num_threads(1)
    start, images = perf_counter(), PlainImages(task)
    for index, path in enumerate(task.paths):
        if plain:
            images[index]
        else:
            load_image(path.read_bytes(), 224, "squash")
    return perf_counter() - start


@torch.inference_mode()
def forward_only(task: Task, plain: bool) -> float:
    """Seconds in the backbone alone, on images in memory; plain is efficientnet-pytorch's own."""
    if plain:
        net = library(task.backbone).EfficientNet.from_name(task.backbone, image_size=224).eval()
        images = torch.randn(BATCH, 3, 224, 224, device=task.device)
        model = net.to(task.device).extract_features
    else:
        weights = find_weights(task.backbone, "none", 0)
        images = torch.zeros(BATCH, 224, 224, dtype=torch.uint8, device=task.device)
        model = build_backbone(task.backbone, 224, weights).to(task.device)
    model(images)
    start = perf_counter()
    for _ in range(len(task.paths) // BATCH):
        model(images).flatten()[0].item()  # waits for a GPU
    return perf_counter() - start


def head_alone(task: Task) -> float:
    """20 epochs over as many features as FracAtlas has, on one thread."""
    torch.set_num_threads(1)
    features = torch.randn(3266, feature_width(task.backbone))
    start = perf_counter()
    train_head(features, torch.randint(2, (3266,)), 3266 - 16, 20)
    return perf_counter() - start


def measured(job: Callable[[Task], float], task: Task) -> tuple[float, float]:
    """Seconds and peak resident memory in MiB of a job in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_memory, job, task).result()


def _with_memory(job: Callable[[Task], float], task: Task) -> tuple[float, float]:
    with Path(os.devnull).open("w") as void, redirect_stdout(void), redirect_stderr(void):
        seconds = job(task)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Each line of the table: its title, the job, and the line that its speed is compared with.
JOBS: dict[str, tuple[Callable[[Task], float], str]] = {
    "textbook": (textbook, ""),
    "textbook, kind": (partial(textbook, kind=True), "textbook"),
    "ours, cold": (cold, "textbook"),
    "ours, warm": (warm, "textbook"),
    "decode, plain Pillow": (partial(decode, plain=True), ""),
    "decode, ours": (partial(decode, plain=False), "decode, plain Pillow"),
    "backbone, eager library": (partial(forward_only, plain=True), ""),
    "backbone, ours": (partial(forward_only, plain=False), "backbone, eager library"),
    "head, 3,266 features": (head_alone, ""),
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
        workers = os.cpu_count() or 1
        task = Task(split, arguments.backbone, arguments.epochs, arguments.device, workers)
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
    print("the textbook's seconds are one epoch's, times the epochs")
    if arguments.out:
        content = {"machine": machine, "settings": vars(arguments), "times": times}
        arguments.out.write_text(json.dumps(content, indent=2, default=str) + "\n")


def take_images(data_root: Path, count: int, folder: Path) -> tuple[Split, str]:
    """Link decodable images into a folder, from the data set or else drawn."""
    kind = "real"
    if not data_root.is_dir():
        data_root, kind = folder / "drawn", "DRAWN"
        draw_data_set(data_root, max(count, 20) + 8)  # it draws a few files that do not decode
    rows: list[Row] = []
    for item in find_radiographs(data_root):
        found = inspect(item.path)
        if found.fault or len(rows) == count:
            continue
        row = Row(f"{item.label}/{len(rows)}.jpg", item.label, "train", "", "", found.sha256)
        (folder / row.place).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(item.path.resolve(), folder / row.place)
        rows.append(row)
    random.Random(0).shuffle(rows)
    return Split(folder, rows, list(CLASSES), ""), kind


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
        rate = "" if name.startswith("head") else f"{passed / median(seconds):,.1f}"
        memory = max(result[1] for result in results)
        lines.append(f"{name:24}{median(seconds):10.2f}{rate:>12}{ratio:>26}{memory:8,.0f}")
    return lines


if __name__ == "__main__":
    main()
