"""One file to one tensor, and many as a data set."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from fracture.config import Fit
from fracture.errors import one_line

# Part of the features' key: raise it with every change to what load_image or Backbone.forward give.
PREPROCESSING_VERSION = 1

# What Pillow raises for a file that is not a whole image. Truncated files must fail here:
# LOAD_TRUNCATED_IMAGES would fill them up with grey, and in FracAtlas that grey spells the label.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def inspect(path: Path) -> tuple[str, str]:
    """Decode a file fully: `open()` and `verify()` pass on FracAtlas' truncated JPEGs.

    Returns:
        The sha256 of the file's bytes in hexadecimal ("" if there is no reading it), and why it
        cannot be decoded ("" if it can).
    """
    digest = ""
    if path.name.startswith("."):
        return digest, "hidden file"
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
        return digest, ""
    except UNREADABLE as error:
        return digest, _reason(error)


def _reason(error: Exception) -> str:
    # In place of the file, Pillow and Python name objects and paths that the reader knows already.
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return getattr(error, "strerror", None) or one_line(error)


def load_image(content: bytes, size: int, fit: Fit) -> np.ndarray:
    """Decode a radiograph as an upright, grey square of (size, size) uint8.

    Args:
        content: a file of any kind that Pillow reads, with integer grey levels or colours. Of more
            than 8 bits the upper 8 of those in use count: 12-bit films come in 16-bit files.
        size: pixels on a side.
        fit: "squash" ignores the proportions, as the published protocol does (arXiv 2406.15958);
            "letterbox" keeps them and pads with black.

    Raises:
        UNREADABLE: it is not a whole image.
    """
    with Image.open(io.BytesIO(content)) as image:
        # The JPEG decoder leaves out detail that a smaller picture does not need; twice the target
        # size still leaves the quality to the resize below.
        image.draft("L", (2 * size, 2 * size))
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("grey levels are fractions, of unknown range")
    if upright.mode.startswith("I"):
        levels = np.asarray(upright, dtype=np.int64).clip(0)
        spare = max(0, int(levels.max()).bit_length() - 8)
        grey = Image.fromarray((levels >> spare).astype(np.uint8))
    else:
        grey = upright.convert("L")
    if fit == "squash":
        return np.array(grey.resize((size, size), Image.Resampling.BILINEAR))
    return np.array(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))


class ImageFiles(Dataset):
    """Files as (index, (size, size) uint8 tensor, reason); an unreadable one is black.

    Args:
        paths: the files.
        digests: the sha256 that each must have, so that no other image is taken for it; or None.
        size: pixels on a side.
        fit: as in `load_image`.
    """

    def __init__(
        self, paths: Sequence[Path], digests: Sequence[str] | None, size: int, fit: Fit
    ) -> None:
        self.paths, self.digests, self.size, self.fit = paths, digests, size, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, str]:
        try:
            content = self.paths[index].read_bytes()
            if self.digests and hashlib.sha256(content).hexdigest() != self.digests[index]:
                raise ValueError("changed since the split was made")
            return index, torch.from_numpy(load_image(content, self.size, self.fit)), ""
        except UNREADABLE as error:
            black = torch.zeros(self.size, self.size, dtype=torch.uint8)
            return index, black, _reason(error)
