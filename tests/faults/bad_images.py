"""Files that are bad images, or the same film in other clothes: made by a seed, from one film."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.data import get_testdata_file


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(film: Image.Image) -> Iterator[tuple[str, bytes]]:
    """The film in other containers, modes and orientations: all must be read alike."""
    for name in ("film.PNG", "film.TIFF", "film.BMP", "film.GIF", "a,b\"c'.PNG", "caf\udce9\n.PNG"):
        yield name, saved(film, name.split(".")[1])
    for bits in (12, 16):
        levels = Image.fromarray(np.asarray(film).astype(np.uint16) << (bits - 8))
        yield from ((f"{bits}-bit.{kind}", saved(levels, kind)) for kind in ("png", "tiff"))
    for mode in ("RGB", "RGBA", "LA", "P"):
        yield f"{mode}.png", saved(film.convert(mode), "PNG")
    yield "cmyk.jpg", saved(film.convert("RGB").convert("CMYK"), "JPEG", quality=98)


def refused(film: Image.Image) -> Iterator[tuple[str, bytes]]:
    """What is no film, or not one film."""
    frames = [film.rotate(90), film.rotate(180)]
    for kind in ("GIF", "PNG", "TIFF"):
        yield f"animated.{kind}", saved(film, kind, save_all=True, append_images=frames)
    # Cut short, with several frames, in colour, without an image: pydicom's own test files.
    for name in ("MR_truncated", "rtdose", "SC_rgb_small_odd", "reportsi"):
        yield f"{name}.dcm", Path(str(get_testdata_file(f"{name}.dcm"))).read_bytes()
    yield from ((f"truncated.{kind}", saved(film, kind)[:-3000]) for kind in ("jpeg", "png"))
    yield from (("empty.jpg", b""), ("zeros.jpg", bytes(5000)), ("text.jpg", b"no image\n" * 99))
    yield "program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n"
    yield "fractions.tif", saved(film.convert("F"), "TIFF")
    yield "huge.png", saved(Image.new("1", (12_000, 9_000)), "PNG")


def damaged(good: list[bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Good files, cut short or with a few bytes changed near their beginning."""
    rng = random.Random(seed)
    for number in range(count):
        content = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(400)] = rng.randrange(256)
        yield f"{number}.png", bytes(content[: rng.choice((None, rng.randrange(len(content))))])
