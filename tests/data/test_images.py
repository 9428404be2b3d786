"""One file to one tensor: upright, grey, complete, the same however it is saved."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture.data import images
from fracture.data.images import content_box, load_image, load_or_explain, scan_image
from tests.data.conftest import encoded

# A picture that is turned no way like itself: brighter to the right, a step at half height.
LEVELS = np.fromfunction(lambda y, x: x * 0.5 + (y > 200) * 90, (400, 300)).astype(np.uint8)
FILM = Image.fromarray(LEVELS)
PIXELS = sha256(f"{FILM.size}".encode() + FILM.tobytes()).hexdigest()
PNG = encoded(FILM, "PNG")
SQUARE, BOXED = load_image(PNG, 64, "squash"), load_image(PNG, 64, "letterbox")
SAME = {m: encoded(FILM.convert(m), "TIFF") for m in ("L", "LA", "RGB", "RGBA", "P", "CMYK")}
for orientation, angle in ((3, 180), (6, 90), (8, 270)):  # what EXIF undoes
    exif = Image.Exif()
    exif[0x0112] = orientation
    SAME[f"turned {angle}"] = encoded(FILM.rotate(angle, expand=True), "TIFF", exif=exif)
for bits in (10, 12, 16):
    SAME[f"{bits} bits"] = encoded(Image.fromarray(LEVELS.astype(np.uint16) << (bits - 8)), "PNG")
SAME["CMYK.jpg"] = encoded(FILM.convert("CMYK"), "JPEG", quality=95)
# What a camera writes: a JPEG with previews behind it.
SAME["MPO.jpg"] = encoded(FILM, "MPO", save_all=True, append_images=[ImageOps.flip(FILM)])


def test_squash_fills_the_square_and_letterbox_keeps_the_proportions() -> None:
    now = [sha256(square.tobytes()).hexdigest()[:8] for square in (SQUARE, BOXED)]
    assert (images.PREPROCESSING_VERSION, now) == (1, ["91f1a793", "a6898d04"]), "raise the version"
    assert SQUARE.tolist() == np.array(FILM.resize((64, 64), 2)).tolist()
    assert BOXED[:, 8:56].tolist() == np.array(FILM.resize((48, 64), 2)).tolist()
    assert BOXED[:, :8].max() == BOXED[:, 56:].max() == 0


@pytest.mark.parametrize("name", SAME)
def test_a_film_is_read_alike_however_it_is_saved(name: str, tmp_path: Path) -> None:
    close = 20 * name.endswith("jpg")  # JPEG blurs the step
    np.testing.assert_allclose(load_image(SAME[name], 64, "squash").astype(int), SQUARE, atol=close)
    (tmp_path / "film").write_bytes(SAME[name])
    report = scan_image(tmp_path / "film")
    assert (report.sha256, report.error) == (sha256(SAME[name]).hexdigest(), "")
    assert (report.pixels == PIXELS) == (not close)


def test_a_large_jpeg_is_decoded_smaller_with_little_deviation() -> None:
    noise = np.random.default_rng(0).normal(0, 9, (1440, 1152))
    large = Image.fromarray(np.uint8((np.array(FILM.resize((1152, 1440))) + noise).clip(0, 255)))
    ours = load_image(encoded(large.convert("RGB"), "JPEG", quality=95), 112, "squash")
    assert 0 < np.abs(ours - np.array(large.resize((112, 112), 2), int)).max() <= 8


BAD = {
    "not an image": b"no image at all\n" * 100,
    "truncated": encoded(FILM, "JPEG")[:-500],
    "floating-point grey levels, range unknown": encoded(FILM.convert("F"), "TIFF"),
    "2 frames": encoded(FILM, "GIF", save_all=True, append_images=[FILM.rotate(9)]),
    "PostScript": encoded(FILM, "EPS"),
    "exceeds limit of 100000000 pixels": encoded(Image.new("1", (10_001, 10_000)), "PNG"),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_not_one_complete_image_is_refused(reason: str, tmp_path: Path) -> None:
    film = tmp_path / "film.jpg"
    film.write_bytes(BAD[reason])
    report, (image, note) = scan_image(film), images.ImageFiles([film], 8, "squash")[0]
    assert reason in report.error
    assert (report.sha256, report.pixels) == (sha256(BAD[reason]).hexdigest(), "")
    assert (image.tolist(), note) == ([[0] * 8] * 8, report.error)


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_bytes(PNG)
    errors = [scan_image(tmp_path / name).error for name in (".hidden", "gone", "")]
    assert errors == ["hidden file", "No such file or directory", "Is a directory"]


@pytest.mark.parametrize("digest", ["", sha256(PNG).hexdigest(), "0" * 64])
def test_another_file_than_the_split_knows_is_not_read(tmp_path: Path, digest: str) -> None:
    (tmp_path / "film").write_bytes(PNG)
    image, reason = load_or_explain(tmp_path / "film", 64, "squash", digest)
    assert reason == "changed since the split was made" * (digest == "0" * 64)
    assert image.tolist() == (SQUARE * (not reason)).tolist()


def test_blank_margins_are_left_out_but_the_lower_one() -> None:
    assert content_box(FILM) == (6, 8, 294, 400)
    assert content_box(ImageOps.expand(FILM, (50, 30, 20, 10), fill=114)) == (56, 38, 344, 440)
