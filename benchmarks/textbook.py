"""The protocol as the textbook writes it, to be timed against: every image again in every epoch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from fracture.config import Device
from fracture.data.manifest import Split
from fracture.models.backbone import NORMALISATION, Head, feature_width, library

BATCH = 16


@dataclass(frozen=True)
class Task:
    """What both sides work on: a split's training and validation images, and the protocol.

    Attributes:
        workplace: the folder that holds the split, a cache, and a run that was trained on it.
        split: its training images first.
        backbone: with random weights.
        epochs: of the whole protocol.
        device: where the backbone runs.
    """

    workplace: Path
    split: Split
    backbone: str
    epochs: int
    device: Device

    @property
    def paths(self) -> list[Path]:
        return [self.split.folder / row.place for row in self.split.rows]

    @property
    def labels(self) -> list[int]:
        return [self.split.classes.index(row.label) for row in self.split.rows]

    @property
    def train_images(self) -> int:
        return sum(row.split == "train" for row in self.split.rows)


class PlainImages(Dataset):
    """As the textbook decodes: Pillow, RGB, bilinear, float tensor, normalised."""

    def __init__(self, task: Task) -> None:
        self.paths, self.labels = task.paths, task.labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            small = np.array(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(small).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALISATION["imagenet"])
        return (pixels - mean) / std, self.labels[index]


def textbook(task: Task, kind: bool = False) -> float:
    """Seconds of one epoch, training and validation.

    Kind is what its users would do next: workers, channels_last, and bfloat16 on a GPU (a CPU
    without instructions for it takes 20 times as long).
    """
    device = torch.device(task.device)
    net = library(task.backbone).EfficientNet.from_name(task.backbone, image_size=224)
    net.requires_grad_(False).eval().to(device)
    head = Head(feature_width(task.backbone), 0.5).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    layout = torch.channels_last if kind else torch.contiguous_format
    net.to(memory_format=layout)
    loader = DataLoader(PlainImages(task), BATCH, num_workers=(os.cpu_count() or 1) if kind else 0)
    start = perf_counter()
    for step, (images, labels) in enumerate(loader):
        is_train = step * BATCH < task.train_images
        head.train(is_train)
        with torch.autocast(device.type, torch.bfloat16, kind and device.type == "cuda"):
            with torch.no_grad():
                pixels = images.to(device, memory_format=layout)
                features = net.extract_features(pixels).mean((2, 3))
            loss = cross_entropy(head(features), labels.to(device))
        if is_train:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
    return perf_counter() - start
