"""DICOM films as they are meant to be shown, or a reason."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from fracture.data.dicom import caution, patient_of, read_dicom
from fracture.data.images import scan_image
from tests.conftest import Patch

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)
USUAL: Any = {"SOPClassUID": "1.2", "SOPInstanceUID": "1.2", "PixelRepresentation": 0}
USUAL |= {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
USUAL |= {"Rows": 8, "Columns": 32, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
DEEP: dict[str, Any] = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
# 78 to 178, DICOM PS3.3 C.11.2.1.2.1
WINDOW: dict[str, Any] = {"WindowCenter": "128", "WindowWidth": "101"}
RESCALED = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "-872"}
WINDOWED = ((GREY.astype(float) - 77.5) * 2.55).clip(0, 255)


def dicom(levels: np.ndarray = GREY, syntax: str = "1.2.840.10008.1.2.1", **own: Any) -> bytes:
    """A film with some elements of its own."""
    film: Any = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax  # by default explicit, little endian
    for name, value in (USUAL | {"PixelData": levels.tobytes()} | own).items():
        setattr(film, name, value)
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def without(name: str) -> bytes:
    """A film that lacks an element. Without its pixels it could be a structured report."""
    film = dcmread(io.BytesIO(dicom()))
    delattr(film, name)
    film.save_as(buffer := io.BytesIO())
    return buffer.getvalue()


SHOWN = {
    "plain": (dicom(), GREY),
    "air bright": (dicom(255 - GREY, PhotometricInterpretation="MONOCHROME1"), GREY),
    "12 bits": (dicom(GREY.astype(np.uint16) << 4, **DEEP), GREY),
    "negative slope": (dicom(RescaleSlope="-2", RescaleIntercept="0"), 255 - GREY),
    "window": (dicom(**WINDOW), WINDOWED),
    "window of rescaled levels": (dicom(GREY // 2, **(WINDOW | RESCALED)), WINDOWED),
    "flat": (dicom(GREY * 0), GREY * 0),
}
REFUSED = {
    "2 frames in MONOCHROME2": dicom(np.stack([GREY, GREY]), NumberOfFrames=2),
    "1 frames in RGB; export one grey frame": dicom(PhotometricInterpretation="RGB"),
    "deflated, of unknown size": dicom(syntax="1.2.840.10008.1.2.1.99"),
    "65535 x 65535 pixels are too many": dicom(Rows=65535, Columns=65535),
    "not finite": dicom(RescaleSlope="1e400", RescaleIntercept="0"),
    "pixel data": dicom(GREY[:4]),
    "MR, not a radiograph": dicom(Modality="MR"),
    "no image in it": without("PixelData"),
    "its header has no 'Rows'": without("Rows"),
    "JPEG-LS Lossless Image Compression: pip install": dicom(
        syntax="1.2.840.10008.1.2.4.80", PixelData=encapsulate([b"\0" * 8])
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_film_is_decoded_as_it_is_meant_to_be_shown(name: str) -> None:
    np.testing.assert_allclose(np.asarray(read_dicom(SHOWN[name][0])), SHOWN[name][1], atol=4)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_one_grey_film_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=f"^unusable DICOM: .*{reason}"):
        read_dicom(REFUSED[reason])


def test_pydicom_is_optional(tmp_path: Path, monkeypatch: Patch) -> None:
    """A film is known by its content, not by its name."""
    (tmp_path / "film.jpg").write_bytes(dicom())
    assert scan_image(tmp_path / "film.jpg").error == ""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert scan_image(tmp_path / "film.jpg").error.endswith(
        "to read it: pip install -r requirements-dicom.txt"
    )


def test_a_header_tells_the_patient_and_what_is_no_limb(tmp_path: Path) -> None:
    films = {"a": "HAND", "b": "L WRIST", "c": "CHEST", "d": ""}
    for name, part in films.items():
        owner = "Doe^J" if name in "ab" else ""
        (tmp_path / name).write_bytes(dicom(BodyPartExamined=part, PatientID=owner))
    (tmp_path / "e").write_bytes(b"no DICOM")
    told = [caution(tmp_path / name) for name in "abcde"]
    assert told == ["", "", "caution: CHEST, not a limb", "", ""]
    assert [caution((tmp_path / name).read_bytes()) for name in "abcde"] == told
    patients = [patient_of(tmp_path / name) for name in "abcde"]
    assert patients[0] == patients[1] != ""
    assert "Doe" not in patients[0]
    assert patients[2:] == ["", "", ""]
