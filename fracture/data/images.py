"""One file to one tensor, and many as a data set."""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from fracture.cli import one_line
from fracture.config import Fit
from fracture.data.dicom import MAX_PIXELS, is_dicom, read_dicom

# Part of the features' key: raise it with every change to what load_image or Backbone.forward give.
PREPROCESSING_VERSION = 1

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # it warns of these, and refuses twice as many

# What is wrong with a file is said where its name stands; not, besides, by the decoders.
warnings.filterwarnings("ignore", module=r"PIL\.|pydicom\.")
_decoders = ctypes.CDLL(Image.core.__file__)
logging.getLogger("PIL").addHandler(logging.NullHandler())
for _handler in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt"):
    if hasattr(_decoders, _handler):  # libtiff prints by itself
        getattr(_decoders, _handler)(None)

# What Pillow raises for a file that is not a whole image. Truncated files must fail here:
# LOAD_TRUNCATED_IMAGES would fill them up with grey, and in FracAtlas that grey spells the label.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(EOFError, ArithmeticError, MemoryError, struct.error, Image.DecompressionBombError),
)


@dataclass(frozen=True)
class Finding:
    """What a file is: sha256 of its bytes and of its upright grey pixels, and why it is no image.

    The digests are hexadecimal, "" where there is none; so is the fault of a good file. The
    thumbnail is (96, 96) uint8, upright, without blank margins and squashed; black for a bad file.
    """

    sha256: str = ""
    pixels: str = ""
    fault: str = ""
    thumbnail: np.ndarray = field(default_factory=lambda: np.zeros((96, 96), np.uint8))


def inspect(path: Path) -> Finding:
    """Decode a file fully: `open()` and `verify()` pass on FracAtlas' truncated JPEGs."""
    digest = ""
    if path.name.startswith("."):
        return Finding(fault="hidden file")
    try:
        content = read_file(path)
        digest = hashlib.sha256(content).hexdigest()
        grey = read_grey(content)
    except UNREADABLE as error:
        return Finding(digest, fault=_reason(error))
    pixels = hashlib.sha256(f"{grey.size}".encode() + grey.tobytes()).hexdigest()
    thumbnail = grey.resize((96, 96), Image.Resampling.BOX, box=content_box(grey))
    return Finding(digest, pixels, thumbnail=np.array(thumbnail))


def read_file(path: Path) -> bytes:
    """The file's bytes; a pipe would have us wait for ever.

    Raises:
        UNREADABLE: it is something else than a file, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    return path.read_bytes()


def content_box(grey: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a film without its blank margins and its outermost 2 %.

    Padding and a cassette's frame would make different films alike: they have more contrast than
    bones have. The lower margin stays: a film that was cut off is blank there.
    """
    levels = np.asarray(grey)
    box = []
    for axis in (0, 1):  # columns, then rows; JPEG leaves some levels of noise on a blank line
        busy = np.flatnonzero(levels.max(axis) - levels.min(axis) > 8)
        first, last = (int(busy[0]), int(busy[-1]) + 1) if len(busy) else (0, grey.size[axis])
        rim = (last - first) // 50
        box.append((first + rim, last - rim))
    (left, right), (top, _) = box
    return left, top, right, grey.height


def _reason(error: Exception) -> str:
    # In place of the file, Pillow and Python name objects and paths that the reader knows already.
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return getattr(error, "strerror", None) or one_line(error)


def read_grey(content: bytes, at_least: int = 0) -> Image.Image:
    """Decode a radiograph upright and in 8-bit grey.

    Args:
        content: a file of any kind that Pillow reads, with one frame of integer grey levels or
            colours. Of more than 8 bits the upper 8 of those in use count: 12-bit films come in
            16-bit files.
        at_least: a JPEG may be decoded smaller, down to this many pixels on each side; 0 does not.

    Raises:
        UNREADABLE: it is not a whole image.
    """
    if is_dicom(content):
        return read_dicom(content)
    with Image.open(io.BytesIO(content)) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a camera's JPEG, with previews behind the image
            raise ValueError(f"{frames} frames; export the one you mean")
        if image.format == "EPS":
            raise ValueError("PostScript, a program that would have to be run")
        if at_least:
            image.draft("L", (at_least, at_least))  # leaves out detail while decoding
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("grey levels are fractions, of unknown range")
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0)
        spare = max(0, int(levels.max()).bit_length() - 8)
        return Image.fromarray((levels >> spare).astype(np.uint8))
    return image.convert("L")


def load_image(content: bytes, size: int, fit: Fit) -> np.ndarray:
    """Decode a radiograph as an upright, grey square of (size, size) uint8.

    Args:
        content: the file, as for `read_grey`.
        size: pixels on a side.
        fit: "squash" ignores the proportions, as the published protocol does (arXiv 2406.15958);
            "letterbox" keeps them and pads with black.

    Raises:
        UNREADABLE: it is not a whole image.
    """
    grey = read_grey(content, at_least=2 * size)  # twice: the resize below sets the quality
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
            content = read_file(self.paths[index])
            if self.digests and hashlib.sha256(content).hexdigest() != self.digests[index]:
                raise ValueError("changed since the split was made")
            return index, torch.from_numpy(load_image(content, self.size, self.fit)), ""
        except UNREADABLE as error:
            black = torch.zeros(self.size, self.size, dtype=torch.uint8)
            return index, black, _reason(error)
