"""The protocol as the textbook writes it, to be timed against: every image again in every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from fracture.config import Device
from fracture.manifest import Split
from fracture.model import NORMALISATION, Head, feature_width, library

BATCH = 16


@dataclass(frozen=True)
class Task:
    """What both sides work on: images in a folder of their own, and the protocol's settings."""

    split: Split
    backbone: str
    epochs: int
    device: Device
    workers: int

    @property
    def paths(self) -> list[Path]:
        return [self.split.folder / row.place for row in self.split.rows]

    @property
    def labels(self) -> list[int]:
        return [self.split.classes.index(row.label) for row in self.split.rows]

    @property
    def train_images(self) -> int:
        return len(self.split.rows) * 8 // 9


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
    """Seconds of one epoch: train on eight ninths of the images, validate on the rest."""
    device = torch.device(task.device)
    net = library(task.backbone).EfficientNet.from_name(task.backbone, image_size=224)
    net.requires_grad_(False).eval().to(device)
    head = Head(feature_width(task.backbone), 0.5).to(device)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001)
    layout = torch.channels_last if kind else torch.contiguous_format
    net.to(memory_format=layout)
    loader = DataLoader(PlainImages(task), BATCH, num_workers=task.workers if kind else 0)
    start = perf_counter()
    for step, (images, labels) in enumerate(loader):
        is_train = step * BATCH < task.train_images
        head.train(is_train)
        with torch.autocast(device.type, torch.bfloat16, kind):
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
