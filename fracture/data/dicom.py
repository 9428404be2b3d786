"""DICOM films, with the optional package pydicom."""

from __future__ import annotations

import io
from textwrap import shorten

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000  # of any image: three times the largest films
DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"  # after the preamble, DICOM PS3.10 sec. 7.1


def read_dicom(content: bytes) -> Image.Image:
    """Decode a single-frame film as it is meant to be shown, in 8-bit grey, air dark.

    Rescale slope and VOI LUT (or window) are applied, MONOCHROME1 is inverted, and the range of
    the values becomes 0 to 255.

    Raises:
        ValueError: pydicom is missing, the file has several frames or no grey image, or it is
            damaged.
    """
    if DEFLATED in content[:1000]:
        raise ValueError("a deflated DICOM, of unknown size; export it uncompressed")
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ValueError("a DICOM file; to read it: pip install pydicom") from error
    try:
        film = dcmread(io.BytesIO(content))
        frames = int(film.get("NumberOfFrames") or 1)
        photometric = film.PhotometricInterpretation
        if frames == 1 and photometric.startswith("MONOCHROME"):
            if film.Rows * film.Columns > MAX_PIXELS:
                raise ValueError(f"{film.Rows} x {film.Columns} pixels are too many for a film")
            raw = apply_modality_lut(film.pixel_array, film)
            levels = np.asarray(apply_voi_lut(raw, film), dtype=float)
            if not np.isfinite(levels).all():
                raise ValueError("its grey levels are not finite")
    except Exception as error:  # a dozen types, depending on the missing or wrong element
        # shorten: pydicom lists every optional package that could decode the file.
        raise ValueError(f"damaged DICOM: {shorten(str(error), 120)}") from error
    if frames != 1:
        raise ValueError(f"DICOM with {frames} frames; export the one you mean")
    if not photometric.startswith("MONOCHROME"):
        raise ValueError(f"DICOM in {photometric}, not a grey film")
    low, high = levels.min(), levels.max()
    grey = (levels - low) / max(high - low, 1e-9) * 255
    grey = 255 - grey if photometric == "MONOCHROME1" else grey
    return Image.fromarray(grey.round().astype(np.uint8))
