"""Images that are bad, odd, or the same film in other clothes: made by a seed, from good films."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

NONSENSE = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x1a\0\x05\0\0\0\x01\0\0\xff\xff\x87\x69\0\x04\0\0\xff"
)
UPRIGHT = {  # what turns a film so that EXIF's orientation turns it back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class Made:
    """One generated file. By its verdict it is the "same" film as the film of that number, or
    "refused", or one of both ("cut": what was cut off may not have counted), or "either" will do.
    """

    name: str
    content: bytes
    verdict: str
    film: int


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(image: Image.Image, bits: int) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) << (bits - 8))


def turned(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image.transpose(UPRIGHT[orientation]), kind, exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and has hardly any: what a decompression bomb looks like."""

    def chunk(name: bytes, data: bytes) -> bytes:
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def dicom(image: Image.Image, **elements: object) -> bytes:
    film = FileDataset("", {}, preamble=bytes(128), file_meta=FileMetaDataset())
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    film.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["film"])
    described = {
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
        **{"Rows": image.height, "Columns": image.width, "PixelRepresentation": 0},
        **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": image.tobytes()},
    }
    for name, value in (described | elements).items():
        setattr(film, name, value)
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def same(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """The film in other containers, modes and orientations: all must be read alike."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = image.convert("RGB")
    for kind in ("PNG", "TIFF", "BMP", "GIF", "TGA", "PCX", "PPM", "SGI", "JPEG2000"):
        yield kind.lower(), saved(image, kind)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"):
        yield f"{compression}.tif", saved(image, "TIFF", compression=compression)
    for orientation in UPRIGHT:
        yield f"turned-{orientation}.png", turned(image, orientation, "PNG")
        yield f"turned-{orientation}.tif", turned(image, orientation, "TIFF")
    for bits in (12, 16):
        yield f"{bits}-bit.png", saved(deep(image, bits), "PNG")
        yield f"{bits}-bit.tif", saved(deep(image, bits), "TIFF")
    yield "32-bit.tif", saved(Image.fromarray(np.asarray(image).astype(np.int32) << 20), "TIFF")
    for mode in ("RGB", "RGBA", "LA", "P"):
        yield f"{mode}.png", saved(image.convert(mode), "PNG")
    yield "clear.png", saved(image.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "cmyk.tif", saved(rgb.convert("CMYK"), "TIFF")
    yield "cmyk.jpg", saved(rgb.convert("CMYK"), "JPEG", quality=98)
    yield "progressive.jpg", saved(image, "JPEG", quality=98, progressive=True)
    yield "lossless.webp", saved(rgb, "WEBP", lossless=True)
    yield "profile.jpg", saved(rgb, "JPEG", quality=98, icc_profile=profile)
    yield "profile.png", saved(image, "PNG", icc_profile=b"\xff" * 500)
    yield "nonsense.jpg", saved(rgb, "JPEG", quality=98, exif=NONSENSE)
    yield "mpo.jpg", saved(rgb, "MPO", quality=98, save_all=True, append_images=[rgb.rotate(180)])
    yield "film.dcm", dicom(image)
    yield (
        "negative.dcm",
        dicom(Image.eval(image, lambda v: 255 - v), PhotometricInterpretation="MONOCHROME1"),
    )
    yield "named-as-a-jpeg.jpg", saved(image, "PNG")
    yield "named-as-text.txt.png", saved(image, "TIFF")
    for odd in ("röntgen 1.PNG", "-rf.png", "a,b\"c'.png", "x\ny.png", "\x1b[31m.png", "%s{0}.png"):
        yield odd, saved(image, "PNG")
    yield f"{'long' * 60}.png", saved(image, "PNG")
    yield "caf\udce9.png", saved(image, "PNG")


def refused(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """What is no film, or not one film."""
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        frames = [image.rotate(90 * turn) for turn in (1, 2)]
        yield f"animated.{kind.lower()}", saved(image, kind, save_all=True, append_images=frames)
    yield "frames.dcm", dicom(image, NumberOfFrames=2, PixelData=image.tobytes() * 2)
    yield "short.dcm", dicom(image, PixelData=image.tobytes()[:-1000])
    yield "large.dcm", dicom(image, Rows=65535, Columns=65535)
    yield "infinite.dcm", dicom(image, RescaleSlope="1e400", RescaleIntercept="0")
    yield "colour.dcm", dicom(image, PhotometricInterpretation="RGB")
    yield "nothing.jpg", b""
    yield "zeros.jpg", bytes(5000)
    yield "text.png", b"no image at all\n" * 100
    yield "program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n"
    yield "page.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    yield "fractions.tif", saved(image.convert("F"), "TIFF")
    for width, height in ((12_000, 9_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (0, 9)):
        yield f"bomb-{width}.png", png_header(width, height)
    head = saved(image, "BMP")
    yield "bomb.bmp", head[:18] + struct.pack("<ii", 30_000, 30_000) + head[26:]
    text = PngInfo()
    text.add_text("note", "x" * 5_000_000, zip=True)
    yield "text-bomb.png", saved(image, "PNG", pnginfo=text)
    content = bytearray(saved(image, "PNG"))
    content[29] ^= 1  # of the header's checksum
    yield "checksum.png", bytes(content)


def odd(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Small, long or empty: no films, but images."""
    for width, height in ((1, 1), (1, 30_000), (30_000, 1), (2, 66_000)):
        yield f"{width}x{height}.png", saved(image.resize((width, height)), "PNG")
    yield "1x30000.jpg", saved(image.resize((1, 30_000)), "JPEG")
    yield "black.png", saved(Image.new("L", (99, 99)), "PNG")
    yield "bits.tif", saved(image.convert("1"), "TIFF", compression="group4")
    yield "lab.tif", saved(image.convert("RGB").convert("LAB"), "TIFF")


def flipped(rng: random.Random, content: bytes) -> bytes:
    """A few bytes changed, most often near the beginning, where formats keep their numbers."""
    changed = bytearray(content)
    end = min(len(changed), 400) if rng.random() < 0.7 else len(changed)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(end)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def bad_images(films: Sequence[Path], count: int, seed: int) -> list[Made]:
    """All sorts of the first film, and of the others `count` files that are cut or flipped."""
    rng, made = random.Random(seed), []
    for index, path in enumerate(films):
        with Image.open(path) as image:
            grey = image.convert("L") if index == 0 else image.convert("L").reduce(2)
        grey.putpixel((0, 0), 0)
        grey.putpixel((1, 0), 255)  # all of the range, as DICOM's is stretched to it
        whole = [Made(name, content, "same", index) for name, content in same(grey)]
        if index == 0:
            made += whole
            made += [Made(name, content, "refused", 0) for name, content in refused(grey)]
            made += [Made(name, content, "either", 0) for name, content in odd(grey)]
            continue
        untouched = Made(f"{index}.jpg", path.read_bytes(), "same", len(films) + index)
        made += [untouched, replace(whole[0], name=f"{index}.png")]
        for number in range(count // (len(films) - 1)):
            good = rng.choice([*whole, *[untouched] * 20])
            cut = rng.random() < 0.5
            end = rng.randrange(len(good.content))
            bad = good.content[:end] if cut else flipped(rng, good.content)
            name = f"{index}-{number}-{Path(good.name).stem[:20]}{Path(good.name).suffix}"
            made.append(Made(name, bad, "cut" if cut else "either", good.film))
    return made
