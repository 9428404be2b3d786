"""One file to one grey tensor, or the reason why it is not an image."""

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from fracture.cli import one_line
from fracture.config import Fit
from fracture.data.dicom import MAX_PIXELS, read_dicom

# Part of the features' cache key: raise it whenever load_image or Backbone.forward change.
PREPROCESSING_VERSION = 1

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this and refuses twice as many

# A file's fault is reported beside its name, so the decoders need not report it too.
warnings.filterwarnings("ignore", module=r"PIL\.|pydicom\.")

# A film: the path of a file, its content, a Pillow image, or an array of grey levels or colours.
Source = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class ImageReport:
    """What a file is.

    Attributes:
        sha256: of its bytes, hexadecimal; "" if it cannot be read.
        pixels: sha256 of its upright grey pixels, hexadecimal; "" if it is not an image.
        error: why it is not an image; "" for a good file.
        thumbnail: (96, 96) uint8, upright, without blank margins; black if it is not an image.
    """

    sha256: str = ""
    pixels: str = ""
    error: str = ""
    thumbnail: np.ndarray = field(default_factory=lambda: np.zeros((96, 96), np.uint8))


def scan_image(path: Path) -> ImageReport:
    """Decode a file fully: `open()` and `verify()` accept FracAtlas' truncated JPEGs.

    Those must fail. LOAD_TRUNCATED_IMAGES would fill them up with grey, which in FracAtlas gives
    the label away.
    """
    digest = ""
    if path.name.startswith("."):
        return ImageReport(error="hidden file")
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        grey = read_grey(content)
    except Exception as error:  # damaged bytes lead Pillow to a dozen kinds, without a parent
        return ImageReport(digest, error=describe(error))
    pixels = hashlib.sha256(f"{grey.size}".encode() + grey.tobytes()).hexdigest()
    thumbnail = grey.resize((96, 96), Image.Resampling.BOX, box=content_box(grey))
    return ImageReport(digest, pixels, thumbnail=np.array(thumbnail))


def files_below(folder: Path) -> Iterator[Path]:
    """All files at any depth. A link to a folder is listed, not followed.

    Raises:
        OSError: a folder cannot be read; `Path.rglob` would silently skip it.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from files_below(path)
        else:
            yield path


def content_box(grey: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a film without its blank margins and its outermost 2 %.

    Padding and a cassette's frame have more contrast than bones, so they would make different
    films look alike. The lower margin stays: a truncated film is blank there.
    """
    levels = np.asarray(grey)
    box = []
    for axis in (0, 1):  # columns, then rows; JPEG leaves a little noise on a blank line
        busy = np.flatnonzero(np.ptp(levels, axis) > 8)
        first, last = (int(busy[0]), int(busy[-1]) + 1) if len(busy) else (0, grey.size[axis])
        rim = (last - first) // 50
        box += [first + rim, last - rim]
    left, right, top, _ = box
    return left, top, right, grey.height


def describe(error: Exception) -> str:
    """Why an image cannot be read, without the object names and paths of Pillow and Python."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return getattr(error, "strerror", None) or one_line(error)


def read_grey(source: Source, at_least: int = 0) -> Image.Image:
    """Decode a radiograph, upright and in 8-bit grey.

    Args:
        source: of a file, one that Pillow reads, or DICOM, with one frame of integer grey levels
            or colours. Of more than 8 bits the upper 8 in use count: 12-bit films come in 16-bit
            files.
        at_least: a JPEG may be decoded smaller, down to this many pixels a side; 0: full size.

    Raises:
        Exception: it is not a complete image; of many kinds.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        return _grey(ImageOps.exif_transpose(source))
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if content[128:132] == b"DICM":  # after the preamble, DICOM PS3.10 sec. 7.1
        return read_dicom(content)
    with Image.open(io.BytesIO(content)) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO: a camera's JPEG with previews behind it
            raise ValueError(f"{frames} frames; export the one you mean")
        if image.format == "EPS":
            raise ValueError("PostScript, a program that would have to be run")
        if at_least:
            image.draft("L", (at_least, at_least))  # leaves out detail while decoding
        ImageOps.exif_transpose(image, in_place=True)
    return _grey(image)


def _grey(image: Image.Image) -> Image.Image:
    """An image of any mode in 8-bit grey."""
    if image.mode == "F":
        raise ValueError("floating-point grey levels, range unknown")
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0)
        spare = max(0, int(levels.max()).bit_length() - 8)
        return Image.fromarray((levels >> spare).astype(np.uint8))
    return image.convert("L")


def load_image(source: Source, size: int, fit: Fit) -> np.ndarray:
    """Decode a radiograph as an upright, grey square of (size, size) uint8.

    Args:
        source: as for `read_grey`.
        size: pixels a side.
        fit: "squash" ignores the proportions, as the published protocol does (arXiv 2406.15958);
            "letterbox" keeps them and pads with black.

    Raises:
        Exception: it is not a complete image; of many kinds.
    """
    grey = read_grey(source, at_least=2 * size)  # twice: then the resize sets the quality
    if fit == "squash":
        return np.array(grey.resize((size, size), Image.Resampling.BILINEAR))
    return np.array(ImageOps.pad(grey, (size, size), Image.Resampling.BILINEAR))


def load_or_explain(
    source: Source, size: int, fit: Fit, digest: str = ""
) -> tuple[torch.Tensor, str]:
    """A film as (size, size) uint8 and "", or black and the reason why it is unreadable.

    Args:
        source: as for `read_grey`.
        size: pixels a side.
        fit: as in `load_image`.
        digest: the sha256 that a file must have, so that no other image is taken for it; "": any.
    """
    try:
        if digest:
            source = Path(source).read_bytes()  # type: ignore[arg-type]
            if hashlib.sha256(source).hexdigest() != digest:
                raise ValueError("changed since the split was made")
        return torch.from_numpy(load_image(source, size, fit)), ""
    except Exception as error:  # as in `scan_image`
        return torch.zeros(size, size, dtype=torch.uint8), describe(error)


class ImageFiles(Dataset):
    """Films from anywhere as (image, reason), as `load_or_explain` returns them."""

    def __init__(self, sources: Sequence[Source], size: int, fit: Fit) -> None:
        self.sources, self.size, self.fit = sources, size, fit

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        return load_or_explain(self.sources[index], self.size, self.fit)
