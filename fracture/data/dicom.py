"""DICOM films, with the optional package pydicom."""

import io
from textwrap import shorten

import numpy as np
from PIL import Image

MAX_PIXELS = 100_000_000  # of any image: three times the largest films


def read_dicom(content: bytes) -> Image.Image:
    """Decode a single-frame film as it is meant to be shown, in 8-bit grey, air dark.

    Rescale slope and VOI LUT (or window) are applied, MONOCHROME1 is inverted, and the range of
    the values becomes 0 to 255.

    Raises:
        ValueError: pydicom is missing, the file has several frames or no grey image, or it is
            damaged.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise ValueError("a DICOM file; to read it: pip install pydicom") from error
    try:
        film = dcmread(io.BytesIO(content))
        if film.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1.99":
            raise ValueError("deflated, of unknown size; export it uncompressed")
        if film.Rows * film.Columns > MAX_PIXELS:
            raise ValueError(f"{film.Rows} x {film.Columns} pixels are too many for a film")
        frames, photometric = film.get("NumberOfFrames") or 1, film.PhotometricInterpretation
        if frames != 1 or not photometric.startswith("MONOCHROME"):
            raise ValueError(f"{frames} frames in {photometric}; export one grey frame")
        raw = apply_modality_lut(film.pixel_array, film)
        levels = np.asarray(apply_voi_lut(raw, film), dtype=float)
        if not np.isfinite(levels).all():
            raise ValueError("its grey levels are not finite")
    except Exception as error:  # a dozen types, depending on the missing or wrong element
        # shorten: pydicom lists every optional package that could decode the file.
        raise ValueError(f"unusable DICOM: {shorten(str(error), 120)}") from error
    low, high = levels.min(), levels.max()
    grey = (levels - low) / max(high - low, 1e-9) * 255
    grey = 255 - grey if photometric == "MONOCHROME1" else grey
    return Image.fromarray(grey.round().astype(np.uint8))
