"""DICOM films, with the optional package pydicom."""

from __future__ import annotations

import io
from textwrap import shorten

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000  # of an image of any kind: three times the largest films
DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"  # after the preamble, DICOM PS3.10 sec. 7.1


def read_dicom(content: bytes) -> Image.Image:
    """Decode a single-frame film as it is meant to be shown, in 8-bit grey, dark air.

    Rescale slope and VOI LUT (or window) are applied, MONOCHROME1 is inverted, and the range of
    values then present becomes 0 to 255.

    Raises:
        ValueError: pydicom is missing, the file has several frames or no grey image in it, or it
            is damaged.
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
        kind = film.PhotometricInterpretation
        if frames == 1 and kind.startswith("MONOCHROME"):
            if film.Rows * film.Columns > MAX_PIXELS:
                raise ValueError(f"{film.Rows} x {film.Columns} pixels are no film")
            raw = apply_modality_lut(film.pixel_array, film)
            levels = np.asarray(apply_voi_lut(raw, film), dtype=float)
            if not np.isfinite(levels).all():
                raise ValueError("its grey levels are not finite")
    except Exception as error:  # a dozen kinds, by the element that is missing or wrong
        # pydicom tells at length which optional packages it misses.
        raise ValueError(f"damaged DICOM: {shorten(str(error), 120)}") from error
    if frames != 1:
        raise ValueError(f"DICOM with {frames} frames; export the one you mean")
    if not kind.startswith("MONOCHROME"):
        raise ValueError(f"DICOM in {kind}, not a grey film")
    low, high = levels.min(), levels.max()
    grey = (levels - low) / max(high - low, 1e-9) * 255
    return Image.fromarray((255 - grey if kind == "MONOCHROME1" else grey).round().astype(np.uint8))
