"""The stages of both sides, each timed alone, for benchmark.py."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.textbook import BATCH, PlainImages, Task
from fracture.config import DEFAULT_FILE
from fracture.data.images import load_image
from fracture.features.extract import (
    PASS_IMAGES,
    Recipe,
    backbone_pass,
    pick_device,
    ready_backbone,
)
from fracture.models.backbone import find_weights, library

IMPORTS = "import torch, torchvision, efficientnet_pytorch, wandb"
FORWARD = """
import {library}
net = {library}.EfficientNet.from_name({name!r}, image_size=224).eval()
with torch.inference_mode():
    net.extract_features(torch.randn(1, 3, 224, 224))
"""


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


def recipe_of(task: Task) -> Recipe:
    precision = pick_device(task.device, "auto")[1]
    return Recipe(task.backbone, find_weights(task.backbone, "none", 0), 224, "squash", precision)


@torch.inference_mode()
def forward(task: Task, plain: bool) -> float:
    """Seconds in the backbone alone, on as many images that lie on the device already.

    Plain is efficientnet-pytorch as it comes. Ours is the limit of the whole pass.
    """
    device = torch.device(task.device)
    if plain:
        net = library(task.backbone).EfficientNet.from_name(task.backbone, image_size=224).eval()
        model, size = net.to(device).extract_features, BATCH
        images = torch.randn(size, 3, 224, 224, device=device)
    else:
        model, size = ready_backbone(recipe_of(task), device), PASS_IMAGES[device.type]
        images = torch.zeros(size, 224, 224, dtype=torch.uint8, device=device)
    model(images).flatten()[0].item()  # waits for a GPU
    rounds = -(-len(task.paths) // size)
    start = perf_counter()
    for _ in range(rounds):
        out = model(images)
    out.flatten()[0].item()
    return (perf_counter() - start) * len(task.paths) / (rounds * size)


def whole_pass(task: Task) -> float:
    """Seconds from files to features: those that twice as many images take longer.

    Building the backbone and starting workers are in both, and so in neither.
    """
    seconds = []
    for paths in (task.paths, task.paths * 2):
        start = perf_counter()
        for _ in backbone_pass(paths, None, recipe_of(task), "auto", torch.device(task.device)):
            pass
        seconds.append(perf_counter() - start)
    return seconds[1] - seconds[0]


def imports(task: Task, forward: bool = False) -> float:
    """Seconds of a process that imports the libraries; and passes one image as they come."""
    code = (
        IMPORTS
        + FORWARD.format(name=task.backbone, library=library(task.backbone).__name__) * forward
    )
    return _process("-c", code)


def script(task: Task, arguments: Sequence[str]) -> float:
    """Seconds of a script's process, from its start to its end, in the task's workplace."""
    values = {"film": task.paths[0], "backbone": task.backbone, "device": task.device}
    name, *rest = (argument.format(**values) for argument in arguments)
    return _process(str(DEFAULT_FILE.parent / name), *rest, cwd=task.workplace)


def _process(*arguments: str, cwd: Path | None = None) -> float:
    with tempfile.TemporaryFile() as output:
        start = perf_counter()
        subprocess.run(
            [sys.executable, *arguments], cwd=cwd, stdout=output, stderr=output, check=True
        )
        return perf_counter() - start
