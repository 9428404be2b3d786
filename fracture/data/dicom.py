"""DICOM films, with the optional package pydicom."""

import hashlib
import io
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image

from fracture.cli import one_line

MODALITIES = ("CR", "DX", "RG")  # the kinds of radiograph, PS3.3 sec. C.7.3.1.1.1
LIMBS = (
    "HAND", "FINGER", "THUMB", "WRIST", "ARM", "RADIUS", "ULNA", "ELBOW", "HUMERUS", "SHOULDER",
    "CLAVICLE", "SCAPULA", "HIP", "PELVIS", "THIGH", "FEMUR", "KNEE", "PATELLA", "LEG", "TIBIA",
    "FIBULA", "ANKLE", "FOOT", "TOE", "CALCANEUS", "HEEL", "EXTREMITY",
)  # fmt: skip
MAX_PIXELS = 100_000_000  # of any image: three times the largest films


def is_dicom(file: Path | bytes) -> bool:
    """Recognised by content: a PACS may omit file extensions (DICOM PS3.10 sec. 7.1)."""
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as content:
        return content.read(132)[128:] == b"DICM"


def header(file: Path | bytes) -> Any:
    """A DICOM file's header, without the image; None for any other file.

    Raises:
        ValueError: pydicom is missing, or the header is damaged.
    """
    if not is_dicom(file):
        return None
    try:
        from pydicom import dcmread

        content = io.BytesIO(file) if isinstance(file, bytes) else file
        return dcmread(content, stop_before_pixels=True)
    except Exception as error:
        raise ValueError(f"unusable DICOM: {one_line(error, 120)}") from error


def patient_of(path: Path) -> str:
    """The patient's id, hashed, from a film that can be read; "" without one."""
    found = header(path)
    name = str(found.get("PatientID", "")).strip() if found else ""
    return hashlib.sha256(name.encode()).hexdigest() if name else ""


def caution(film: object) -> str:
    """A caution if the header names a body part that is not a limb; else ""."""
    film = Path(film) if isinstance(film, str) else film
    found = header(film) if isinstance(film, Path | bytes) else None
    part = str(found.get("BodyPartExamined", "")).upper() if found else ""
    shows_limb = not part or any(limb in part for limb in LIMBS)
    return "" if shows_limb else f"caution: {part}, not a limb"


def read_dicom(content: bytes) -> Image.Image:
    """Decode a single-frame film as it is meant to be shown, in 8-bit grey, air dark.

    Rescale slope and VOI LUT (or window) are applied, MONOCHROME1 is inverted, and the range of
    the values becomes 0 to 255.

    Raises:
        ValueError: pydicom or a decoder is missing, the file is of another modality, has several
            frames or no grey image, or is damaged.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder
    except ImportError as error:
        raise ValueError(
            "a DICOM file; to read it: pip install -r requirements-dicom.txt"
        ) from error
    try:
        film = dcmread(io.BytesIO(content))
        syntax, modality = film.file_meta.TransferSyntaxUID, film.get("Modality")
        if syntax == "1.2.840.10008.1.2.1.99":
            raise ValueError("deflated, of unknown size; export it uncompressed")
        if modality and modality not in MODALITIES:
            raise ValueError(f"{modality}, not a radiograph")
        if "PixelData" not in film:
            raise ValueError("no image in it")
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            raise ValueError(f"{syntax.name}: pip install -r requirements-dicom.txt")
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
        reason = re.sub("'File.*' object has no attribute", "its header has no", str(error))
        # shorten: pydicom lists every optional package that could decode the file.
        raise ValueError(f"unusable DICOM: {shorten(reason, 120)}") from error
    low, high = levels.min(), levels.max()
    grey = (levels - low) / max(high - low, 1e-9) * 255
    grey = 255 - grey if photometric == "MONOCHROME1" else grey
    return Image.fromarray(grey.round().astype(np.uint8))
