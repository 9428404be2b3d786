"""One file to one tensor: upright, grey, whole, the same however it is loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture.data.images import PREPROCESSING_VERSION, UNREADABLE, ImageFiles, inspect, load_image


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A picture that is turned no way like itself: brighter to the right, a step at half."""
    x, y = np.meshgrid(np.arange(300), np.arange(400))
    Image.fromarray((x * 0.5 + (y > 200) * 90).astype(np.uint8)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def test_the_version_is_raised_when_the_preprocessing_changes(film: Path) -> None:
    digests = [
        hashlib.sha256(load_image(film.read_bytes(), 64, fit).tobytes()).hexdigest()[:8]
        for fit in ("squash", "letterbox")
    ]
    assert (PREPROCESSING_VERSION, *digests) == (1, "91f1a793", "a6898d04"), (
        "raise PREPROCESSING_VERSION"
    )


def test_squash_fills_the_square_and_letterbox_keeps_the_proportions(film: Path) -> None:
    squashed, boxed = (
        load_image(film.read_bytes(), 64, "squash"),
        load_image(film.read_bytes(), 64, "letterbox"),
    )
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
        load_image((tmp_path / "rotated.png").read_bytes(), 64, "squash"),
        load_image(film.read_bytes(), 64, "squash"),
    )


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_greys_are_scaled_not_clipped(film: Path, tmp_path: Path, bits: int) -> None:
    with Image.open(film) as image:
        levels = np.asarray(image).astype(np.uint16) << (bits - 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        load_image((tmp_path / "deep.png").read_bytes(), 64, "squash"),
        load_image(film.read_bytes(), 64, "squash"),
    )


def test_greys_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((9, 9), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UNREADABLE, match="unknown range"):
        load_image((tmp_path / "f.tif").read_bytes(), 64, "squash")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "LA", "1"])
def test_every_mode_becomes_grey(film: Path, tmp_path: Path, mode: str) -> None:
    with Image.open(film) as image:
        image.convert("RGB").convert(mode).save(tmp_path / "other.tif")
    other = load_image((tmp_path / "other.tif").read_bytes(), 64, "squash").astype(int)
    assert np.abs(other - load_image(film.read_bytes(), 64, "squash")).mean() < 12


def test_a_large_jpeg_is_decoded_at_less_detail_with_little_deviation(
    film: Path, tmp_path: Path
) -> None:
    with Image.open(film) as image:
        noise = np.random.default_rng(0).normal(0, 9, (2880, 2304))
        large = (np.asarray(image.resize((2304, 2880))) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        plain = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    ours = load_image((tmp_path / "large.jpg").read_bytes(), 224, "squash")
    deviation = np.abs(ours - plain)
    assert deviation.any(), "decoded at full detail"
    assert deviation.mean() < 0.5
    assert deviation.max() <= 8


def test_a_truncated_file_is_refused_by_both_readers(drawn: Path) -> None:
    faults = {path: inspect(path).fault for path in sorted(drawn.glob("images/*/*"))}
    truncated = [path for path, fault in faults.items() if fault]
    assert len(truncated) == 2
    for path in truncated:
        with pytest.raises(UNREADABLE):
            load_image(path.read_bytes(), 224, "squash")


def test_unreadable_and_changed_files_come_with_a_reason(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    films = sorted(drawn.glob("images/Fractured/*"))[:2]
    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would never end
    paths = [*films, tmp_path / "notes.jpg", tmp_path / "gone.jpg", tmp_path / "pipe.jpg"]
    reasons = [ImageFiles(paths, None, 32, "squash")[i][2] for i in range(5)]
    assert reasons == ["", "", "not an image", "No such file or directory", "no regular file"]
    digest = hashlib.sha256(films[0].read_bytes()).hexdigest()
    checked = ImageFiles(films, [digest, digest], 32, "squash")
    assert [checked[i][2] for i in range(2)] == ["", "changed since the split was made"]
    np.testing.assert_array_equal(
        checked[0][1].numpy(), load_image(films[0].read_bytes(), 32, "squash")
    )


def test_what_inspect_says_is_the_same_in_every_run(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(next(drawn.glob("images/*/*")).read_bytes())
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    names = ("notes.jpg", ".hidden.jpg", "broken")
    assert [inspect(tmp_path / name).fault for name in names] == [
        "not an image",
        "hidden file",
        "No such file or directory",
    ]
