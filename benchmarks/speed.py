"""Time the textbook's training loop against this project, on the same images.

    python -m benchmarks.speed --data_root FRACATLAS      # B6, 128 images, 20 epochs

The textbook decodes every image and runs the whole network in every epoch, forward only through the
frozen part. It runs one epoch here, scaled up to --epochs; "tuned" gives it workers, channels_last
and, on a GPU, bfloat16. Ours is train.py's main, with an empty cache and with a full one. The
weights are RANDOM: speed does not depend on them. Every job runs in a process of its own.
"""

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import train
from fracture.config import Config
from fracture.data.images import load_image
from fracture.data.splitting import assign_splits, scan_dataset, write_splits
from fracture.data.synthetic import draw_data_set
from fracture.features.extract import FEATURE_BATCH
from fracture.models.backbone import FeatureSpec, architecture
from fracture.models.head import build_head
from fracture.models.weights import NORMALISATION, find_weights
from fracture.settings import read_config

BATCH = 16


@dataclass(frozen=True)
class Task:
    """What both sides work on: a folder with a split, a backbone, a device, a number of epochs."""

    folder: Path
    backbone: str
    device: str
    epochs: int

    def arguments(self, run: str, cache: str) -> list[str]:
        own = {"backbone": self.backbone, "device": self.device, "epochs": self.epochs}
        own |= {"split_dir": "split", "run": run, "cache_dir": cache, "weights": "none"}
        return [f"--{name}={value}" for name, value in own.items()] + ["--wandb_mode=disabled"]

    def images(self, split: str) -> ImageFolder:
        normalise = transforms.Normalize(*NORMALISATION["imagenet"])
        steps = [transforms.Resize((224, 224)), transforms.ToTensor(), normalise]
        return ImageFolder(self.folder / "split" / split, transforms.Compose(steps))


def baseline_loop(task: Task, tuned: bool = False) -> float:
    """Seconds of one epoch of the textbook's loop, training and validation."""
    device, kind = torch.device(task.device), architecture(task.backbone)
    layout = torch.channels_last if tuned else torch.contiguous_format
    network = kind.build(224).requires_grad_(False).eval().to(memory_format=layout).to(device)
    head = build_head(kind.width, 0.5).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    workers, half = (os.cpu_count() or 1, device.type == "cuda") if tuned else (0, False)
    start = perf_counter()
    for split in ("train", "val"):
        head.train(split == "train")
        for images, labels in DataLoader(task.images(split), BATCH, num_workers=workers):
            with torch.autocast(device.type, torch.bfloat16, half):
                with torch.no_grad():
                    pixels = images.to(device, memory_format=layout)
                    features = kind.feature_maps(network, pixels).mean((2, 3))
                loss = cross_entropy(head(features), labels.to(device))
            if split == "train":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss.item()
    return perf_counter() - start


def tuned_loop(task: Task) -> float:
    return baseline_loop(task, tuned=True)


def cold(task: Task) -> float:
    """Seconds of train.py's main with an empty cache."""
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        return _train(task, f"run-{Path(folder).name}", folder)


def warm(task: Task) -> float:
    """Seconds of train.py's main with all features in the cache."""
    return _train(task, f"warm-{os.getpid()}", "cache")


def _train(task: Task, run: str, cache: str) -> float:
    os.chdir(task.folder)
    start = perf_counter()
    train.main(task.arguments(run, cache))
    return perf_counter() - start


def decode_plain(task: Task) -> float:
    """Seconds on one core to turn files into tensors, as torchvision does."""
    torch.set_num_threads(1)
    images, start = task.images("train"), perf_counter()
    for i in range(len(images)):
        images[i]
    return perf_counter() - start


def decode_ours(task: Task) -> float:
    torch.set_num_threads(1)
    samples, start = task.images("train").samples, perf_counter()
    for path, _ in samples:
        load_image(Path(path).read_bytes(), 224, "squash")
    return perf_counter() - start


def backbone_plain(task: Task) -> float:
    """Seconds of the library's backbone alone, on images that lie on the device already."""
    kind = architecture(task.backbone)
    network = kind.build(224).eval().to(task.device)
    images = torch.randn(BATCH, 3, 224, 224).to(task.device)
    return _forward(task, lambda: kind.feature_maps(network, images), BATCH)


def backbone_ours(task: Task) -> float:
    weights = find_weights(task.backbone, "none", 0)
    precision = "bfloat16" if task.device == "cuda" else "float32"
    spec = FeatureSpec(task.backbone, weights, 224, "squash", precision)
    backbone = spec.build(torch.device(task.device))
    size = FEATURE_BATCH[task.device]
    images = torch.zeros(size, 224, 224, dtype=torch.uint8, device=task.device)
    return _forward(task, lambda: backbone(images), size)


@torch.inference_mode()
def _forward(task: Task, step: Callable[[], torch.Tensor], size: int) -> float:
    count = len(task.images("train"))
    rounds = -(-count // size)
    step().flatten()[0].item()  # waits for a GPU
    start = perf_counter()
    for _ in range(rounds):
        last = step()
    last.flatten()[0].item()
    return (perf_counter() - start) * count / (rounds * size)


def infer_process(task: Task) -> float:
    """Seconds of `infer.py FILE`, from its start to its end."""
    film, start = task.images("val").samples[0][0], perf_counter()
    _run_script(task, "infer.py", film, "--run=first", f"--device={task.device}")
    return perf_counter() - start


def _run_script(task: Task, name: str, *arguments: str) -> None:
    command = [sys.executable, str(Path(train.__file__).with_name(name)), *arguments]
    subprocess.run(command, cwd=task.folder, stdout=subprocess.DEVNULL, check=True)


# Each job, and the one that it is compared with.
JOBS: dict[Callable[[Task], float], Callable[[Task], float] | None] = {
    baseline_loop: None,
    tuned_loop: baseline_loop,
    cold: baseline_loop,
    warm: baseline_loop,
    decode_plain: None,
    decode_ours: decode_plain,
    backbone_plain: None,
    backbone_ours: backbone_plain,
    infer_process: None,
}


def measure(job: Callable[[Task], float], task: Task) -> float:
    """Seconds of a job in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_quietly, job, task).result()


def _quietly(job: Callable[[Task], float], task: Task) -> float:
    multiprocessing.set_start_method(None, force=True)  # workers as everywhere else, not spawned
    with Path(os.devnull).open("w") as void, redirect_stdout(void), redirect_stderr(void):
        return job(task)


def make_split(data_root: Path, count: int, folder: Path) -> str:
    """Split `count` images of the data set, or drawn ones: one ninth is for validation."""
    name = "real"
    if not data_root.is_dir():
        name, data_root = "DRAWN", folder / "drawn"
        draw_data_set(data_root, count + count // 4 + 8)  # some are copies or damaged
    usable = [row for row in scan_dataset(data_root) if not row.split]
    random.Random(0).shuffle(usable)
    rows = assign_splits(usable[:count], (Fraction(8, 9), Fraction(1, 9), Fraction(0)), 0)
    config = replace(read_config(Config.files[0]), split_dir=str(folder / "split"))
    write_splits({".": rows}, data_root, config)
    return name


def print_table(times: Mapping[Callable, Sequence[float]], epochs: int) -> None:
    """Median seconds of each job, and how many times as fast it is as another (range)."""
    print(f"\n{'':18}{'seconds':>10}   times as fast")
    for job, base in JOBS.items():
        ratio = ""
        if base:
            ratios = [b / s for b, s in zip(times[base], times[job], strict=True)]
            ratio = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) {base.__name__}"
        print(f"{job.__name__:18}{median(times[job]):10.2f}   {ratio}".rstrip())
    print(f"loops: one epoch, times {epochs}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data_root", type=Path, default=Path("data/FracAtlas"), help="else images are drawn")
    add("--images", type=int, default=128, help="how many [%(default)s]")
    add("--epochs", type=int, default=20, help="of the protocol [%(default)s]")
    add("--backbone", default="efficientnet-b6", help="with random weights [%(default)s]")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="[%(default)s]")
    add("--repeats", type=int, default=3, help="of every job [%(default)s]")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        name = make_split(options.data_root, options.images, Path(folder))
        task = Task(Path(folder), options.backbone, options.device, options.epochs)
        _run_script(task, "train.py", *task.arguments("first", "cache"))
        times: dict[Callable, list[float]] = {job: [] for job in JOBS}
        for job in tqdm([*JOBS] * options.repeats, "measuring", disable=None):  # interleaved
            epochs = task.epochs if job in (baseline_loop, tuned_loop) else 1  # they time one epoch
            times[job].append(measure(job, task) * epochs)
    print(f"\n{options.images} {name} images, {task.backbone} with RANDOM weights", end=", ")
    print(f"{os.cpu_count()} cores, {options.device}, torch {torch.__version__}")
    print_table(times, task.epochs)


if __name__ == "__main__":
    main()
