"""One file to one tensor: upright, grey, whole, the same however it is loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture.images import PREPROCESSING_VERSION, UNREADABLE, image_loader, inspect, load_image


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A picture that is turned no way like itself: brighter to the right, a step at half."""
    x, y = np.meshgrid(np.arange(300), np.arange(400))
    Image.fromarray((x * 0.5 + (y > 200) * 90).astype(np.uint8)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def test_the_version_is_raised_when_the_preprocessing_changes(film: Path) -> None:
    digests = [
        hashlib.sha256(load_image(film, 64, fit).tobytes()).hexdigest()[:8]
        for fit in ("squash", "letterbox")
    ]
    assert (PREPROCESSING_VERSION, *digests) == (1, "91f1a793", "a6898d04"), (
        "raise PREPROCESSING_VERSION"
    )


def test_squash_fills_the_square_and_letterbox_keeps_the_proportions(film: Path) -> None:
    squashed, boxed = load_image(film, 64, "squash"), load_image(film, 64, "letterbox")
    assert squashed.shape == boxed.shape == (64, 64)
    assert squashed.dtype == np.uint8
    assert squashed[:, -1].min() > 100
    assert boxed[:, :8].max() == boxed[:, -8:].max() == 0
    assert boxed[:, 40].min() > 0


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_exif_rotated_film_is_seen_upright(film: Path, tmp_path: Path, orientation: int) -> None:
    stored = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    with Image.open(film) as upright:
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(stored[orientation]).save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(
        load_image(tmp_path / "rotated.png", 64, "squash"), load_image(film, 64, "squash")
    )


def test_16_bit_is_scaled_not_clipped(film: Path, tmp_path: Path) -> None:
    with Image.open(film) as image:
        levels = np.asarray(image).astype(np.uint16) * 256
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        load_image(tmp_path / "deep.png", 64, "squash"), load_image(film, 64, "squash")
    )


def test_a_large_jpeg_is_decoded_at_less_detail_with_little_deviation(
    film: Path, tmp_path: Path
) -> None:
    with Image.open(film) as image:
        image.resize((2304, 2880)).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        plain = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    deviation = np.abs(load_image(tmp_path / "large.jpg", 224, "squash") - plain)
    assert deviation.mean() < 0.5
    assert deviation.max() <= 8


def test_a_truncated_file_is_refused_by_both_readers(drawn: Path) -> None:
    faults = {path: inspect(path)[1] for path in sorted(drawn.glob("images/*/*"))}
    truncated = [path for path, fault in faults.items() if fault]
    assert len(truncated) == 2
    for path in truncated:
        with pytest.raises(UNREADABLE):
            load_image(path, 224, "squash")


def test_unreadable_files_come_with_a_reason_and_the_others_in_order(
    drawn: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    paths = [
        *sorted(drawn.glob("images/Fractured/*"))[:6],
        tmp_path / "notes.jpg",
        tmp_path / "gone.jpg",
    ]
    for workers in (0, 2):
        batches = list(image_loader(paths, 32, "squash", 3, workers, pin_memory=False))
        assert [int(i) for batch in batches for i in batch[0]] == list(range(8))
        reasons = [reason for batch in batches for reason in batch[2]]
        assert reasons[:6] == [""] * 6
        assert "cannot identify" in reasons[6]
        assert "No such file" in reasons[7]
        for path, pixels in zip(
            paths[:6], (p for batch in batches for p in batch[1]), strict=False
        ):
            np.testing.assert_array_equal(pixels.numpy(), load_image(path, 32, "squash"))
