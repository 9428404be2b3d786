"""Copies are recognised however they were saved, and different films are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fracture.data.fracatlas import find_radiographs
from fracture.data.images import UNREADABLE, content_box, inspect, read_grey
from fracture.data.manifest import Row
from fracture.data.near_copies import candidates, descriptors, exclude_copies, near_copies

NOISE = {
    digest: np.random.default_rng(seed).integers(0, 255, (96, 96), np.uint8)
    for seed, digest in enumerate("pqrst")
}


def thumbnail(film: Image.Image) -> np.ndarray:
    return np.array(film.resize((96, 96), Image.Resampling.BOX, content_box(film)))


def recompressed(film: Image.Image) -> Image.Image:
    file = io.BytesIO()
    film.save(file, "JPEG", quality=30)
    return Image.open(file)


def covered(film: Image.Image) -> Image.Image:
    film = film.copy()
    film.paste(60, (0, round(0.76 * film.height), film.width, film.height))
    return film


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": recompressed,
    "smaller": lambda film: film.resize((film.width // 2, film.height // 2)),
    "larger": lambda film: film.resize((film.width * 2, film.height * 2)),
    "trimmed": lambda film: film.crop((4, 1, film.width - 2, film.height - 5)),
    "brighter": lambda film: film.point(lambda grey: min(255, grey + 12)),
    "more contrast": lambda film: film.point(lambda grey: min(255, round(1.25 * grey))),
    "turned by 90": lambda film: film.transpose(Image.Transpose.ROTATE_90),
    "turned by 180": lambda film: film.transpose(Image.Transpose.ROTATE_180),
    "covered below": covered,
    "all but turned": lambda film: recompressed(
        film.crop((2, 2, film.width - 1, film.height - 2)).point(lambda grey: round(0.85 * grey))
    ),
}


@pytest.fixture(scope="module")
def films(real: Path) -> list[Image.Image]:
    """Every 41st decodable radiograph of FracAtlas: no two of them are near-copies."""
    films = []
    for radiograph in find_radiographs(real)[::41]:
        try:
            films.append(read_grey(radiograph.path.read_bytes()))
        except UNREADABLE:
            continue
    return films


@pytest.mark.parametrize("change", CHANGES)
def test_of_real_films_changed_copies_are_found_and_nothing_else(
    films: list[Image.Image], change: str
) -> None:
    changed = [CHANGES[change](film) for film in films]
    numbers = near_copies([thumbnail(film) for film in [*films, *changed]])
    own, of_copy = numbers[: len(films)], numbers[len(films) :]
    assert len(set(own)) == len(films) == 100
    assert np.mean(own == of_copy) >= (0.85 if "turned by" in change else 0.93)
    assert not set(of_copy[own != of_copy]) & set(own)


PADDINGS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "black": lambda film: ImageOps.pad(film, (400, 400)),
    "grey": lambda film: ImageOps.pad(film, (400, 400), color=114),
    "white": lambda film: ImageOps.pad(film, (400, 400), color=255),
    "wide": lambda film: ImageOps.expand(film, 150),
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_common_frame_does_not_make_films_alike(films: list[Image.Image], padding: str) -> None:
    framed = [recompressed(PADDINGS[padding](film)).convert("L") for film in films]
    assert len(set(near_copies([thumbnail(film) for film in framed]))) == len(films)


def test_a_large_family_of_copies_stays_together(films: list[Image.Image]) -> None:
    """Two versions of one film, ten times each: each has ten nearer neighbours than the other."""
    film = films[7]
    trimmed = film.crop((4, 4, film.width - 1, film.height - 1))
    family = []
    for version in (film, trimmed):
        for quality in range(50, 90, 4):
            file = io.BytesIO()
            version.save(file, "JPEG", quality=quality)
            family.append(thumbnail(Image.open(file).convert("L")))
    numbers = near_copies([*family, *(thumbnail(other) for other in films[8:30])])
    assert len(set(numbers[:20])) == 1
    assert len(set(numbers)) == 23


def test_the_drawn_re_encoded_copy_shares_a_group(drawn: Path) -> None:
    radiographs = find_radiographs(drawn)
    found = [inspect(item.path) for item in radiographs]
    rows = [
        Row(item.image, item.label, "excluded" if f.fault else "", f.pixels, "", f.sha256)
        for item, f in zip(radiographs, found, strict=True)
    ]
    rows = exclude_copies(rows, {f.pixels: f.thumbnail for f in found})
    hurt = [row for row in rows if row.label == "Fractured"]
    assert hurt[1].group == hurt[-2].group
    assert hurt[1].split == hurt[-2].split == ""


def test_flat_images_are_no_copies_of_each_other() -> None:
    assert len(set(near_copies([np.full((96, 96), grey, np.uint8) for grey in (0, 9, 255)]))) == 3


def test_an_image_turned_by_its_exif_is_a_copy_once_it_is_upright(
    drawn: Path, tmp_path: Path
) -> None:
    film = find_radiographs(drawn)[0].path
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(film) as image:
        upright = image.convert("L")
        upright.save(tmp_path / "a.png")
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    assert inspect(tmp_path / "a.png").pixels == inspect(tmp_path / "b.png").pixels


@given(st.lists(st.tuples(st.sampled_from("FN"), st.sampled_from("pqrst")), max_size=30))
def test_of_copies_one_stays_and_of_contradictory_ones_none(images: list[tuple[str, str]]) -> None:
    before = [
        Row(f"{i:02}.jpg", label, "", pixels, "", f"sha of {i}")
        for i, (label, pixels) in enumerate(images)
    ]
    after = exclude_copies(before, NOISE)
    assert [row.image for row in after] == [row.image for row in before]
    assert set(exclude_copies(before[::-1], NOISE)) == set(after)
    pixels_of = {row.image: row.group for row in before}
    for group in {row.group for row in after}:
        members = [row for row in after if row.group == group]
        assert len({pixels_of[row.image] for row in members}) == 1
        kept = [row for row in members if row.split != "excluded"]
        agreed = len({row.label for row in members}) == 1
        assert kept == members[:1] if agreed else kept == []
        assert all(row.reason for row in members if row.split == "excluded")


def test_near_copies_of_contradictory_labels_are_excluded_with_all_their_group(drawn: Path) -> None:
    film = read_grey(find_radiographs(drawn)[0].path.read_bytes())
    shown = {
        "p": thumbnail(film),
        "q": thumbnail(recompressed(film)),
        "r": thumbnail(ImageOps.mirror(film)),
    }
    rows = [
        Row("1.jpg", "F", "", "p", "", "1"),
        Row("2.jpg", "F", "", "p", "", "2"),
        Row("3.jpg", "N", "", "q", "label: odd", "3"),
        Row("4.jpg", "N", "", "r", "", "4"),
    ]
    after = exclude_copies(rows, shown)
    assert [row.split for row in after] == ["excluded", "excluded", "excluded", ""]
    assert after[0].reason == "contradictory: 3.jpg is a near-copy"
    assert after[2].reason == "contradictory: 1.jpg is a near-copy; label: odd"
    assert after[0].group == after[1].group == after[2].group != after[3].group


def test_the_search_asks_for_few_of_all_pairs() -> None:
    """Of smooth random images, about as far apart as films, few pairs need to be compared."""
    rng = np.random.default_rng(0)
    for count in (500, 2000):
        coarse = rng.integers(0, 255, (count, 6, 6), np.uint8)
        known = descriptors(coarse.repeat(16, 1).repeat(16, 2))
        pairs = candidates(known, known)
        assert len(pairs) < 0.01 * count
