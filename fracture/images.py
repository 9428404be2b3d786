"""One file to one tensor, and loaders of many."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from fracture.config import Fit
from fracture.errors import one_line

# Part of the features' key: raise it with every change to what load_image returns.
PREPROCESSING_VERSION = 1

# What Pillow raises for a file that is not a whole image. Truncated files must fail here:
# LOAD_TRUNCATED_IMAGES would fill them up with grey, and in FracAtlas that grey spells the label.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def inspect(path: Path) -> tuple[str, str]:
    """Decode a file fully: `open()` and `verify()` pass on FracAtlas' truncated JPEGs.

    Returns:
        The sha256 of the file's bytes in hexadecimal, and why it cannot be decoded ("" if it can).
    """
    content = path.read_bytes()
    reason = ""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except UNREADABLE as error:
        reason = one_line(error)
    return hashlib.sha256(content).hexdigest(), reason


def load_image(path: Path, size: int, fit: Fit) -> np.ndarray:
    """Read a radiograph as an upright, grey square of (size, size) uint8.

    Args:
        path: any image that Pillow reads, of 8 or 16 bit.
        size: pixels on a side.
        fit: "squash" ignores the proportions, as the published protocol does (arXiv 2406.15958);
            "letterbox" keeps them and pads with black.

    Raises:
        UNREADABLE: the file is not a whole image.
    """
    with Image.open(path) as image:
        # The JPEG decoder leaves out detail that a smaller picture does not need; twice the target
        # size still leaves the quality to the resize below.
        image.draft("L", (2 * size, 2 * size))
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16 bit, which Pillow's convert() clips at 255
        levels = np.asarray(upright, dtype=np.float32) / 256
        grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    else:
        grey = upright.convert("L")
    if fit == "squash":
        return np.array(grey.resize((size, size), Image.Resampling.BILINEAR))
    return np.array(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))


class ImageFiles(Dataset):
    """Files as (index, (size, size) uint8 tensor, reason); an unreadable one is black."""

    def __init__(self, paths: Sequence[Path], size: int, fit: Fit) -> None:
        self.paths, self.size, self.fit = paths, size, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, str]:
        try:
            return index, torch.from_numpy(load_image(self.paths[index], self.size, self.fit)), ""
        except UNREADABLE as error:
            black = torch.zeros(self.size, self.size, dtype=torch.uint8)
            return index, black, one_line(error)


def image_loader(
    paths: Sequence[Path], size: int, fit: Fit, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader:
    """Batches of `ImageFiles` in order: (N,) int64, (N, size, size) uint8, N reasons."""
    return DataLoader(
        ImageFiles(paths, size, fit),
        batch_size,
        num_workers=min(workers, len(paths) // batch_size),  # a few images are not worth a process
        pin_memory=pin_memory,
    )
