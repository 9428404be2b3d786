"""Copies are recognised however they were saved, and different films are not."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture.data.images import content_box, read_grey
from fracture.data.manifest import Row
from fracture.data.near_copies import descriptors, exclude_copies, near_copies
from tests.data.conftest import encoded


@pytest.fixture(scope="module", params=["drawn", "real"])
def films(request: pytest.FixtureRequest) -> list[Image.Image]:
    """Fractured radiographs, none of them a copy of another one."""
    folder = request.getfixturevalue(request.param) / "images" / "Fractured"
    paths = sorted(folder.iterdir())[2 : -2 : 1 if request.param == "drawn" else 14]
    return [read_grey(path.read_bytes()) for path in paths]


def thumbnails(films: list[Image.Image]) -> np.ndarray:
    sides = [film.resize((96, 96), Image.Resampling.BOX, content_box(film)) for film in films]
    return np.stack([np.array(side) for side in sides])


def saved(film: Image.Image, quality: int = 70) -> Image.Image:
    return Image.open(io.BytesIO(encoded(film, "JPEG", quality=quality)))


def covered(film: Image.Image) -> Image.Image:
    seen = np.arange(film.height)[:, None] < 0.76 * film.height
    return Image.fromarray(np.where(seen, np.array(film), np.uint8(60)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": saved,
    "smaller": lambda film: ImageOps.scale(film, 0.7),
    "trimmed": lambda film: film.crop((4, 1, film.width - 2, film.height - 5)),
    "brighter": lambda film: film.point(lambda grey: min(255, 1.1 * grey + 12)),
    "turned by 90": lambda film: film.rotate(90, expand=True),
    "turned by 180": lambda film: film.rotate(180),
    "covered below": covered,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(films: list[Image.Image], change: str) -> None:
    both = thumbnails([*films, *map(CHANGES[change], films)])
    own, copies = np.split(near_copies([*both]), 2)
    assert len(set(own)) == len(films) >= 18
    assert np.mean(own == copies) >= (0.85 if "turned" in change else 0.93)
    assert not set(copies[own != copies]) & set(own)


def test_a_large_family_stays_together_in_any_order(films: list[Image.Image]) -> None:
    """Two versions of one film, ten times each: each has ten nearer neighbours than the other."""
    trimmed = films[7].crop((4, 4, films[7].width - 1, films[7].height - 1))
    family = [saved(film, quality) for film in (films[7], trimmed) for quality in range(50, 90, 4)]
    order = np.random.default_rng(0).permutation(30)
    mixed = thumbnails([*family, *films[8:18]])[order]
    numbers = near_copies([*mixed])[np.argsort(order)]
    assert (len(set(numbers[:20])), len(set(numbers))) == (1, 11)


def test_descriptors_have_unit_norm_and_blank_films_are_no_copies(films: list[Image.Image]) -> None:
    norms = np.linalg.norm(descriptors(thumbnails(films)), axis=(1, 2))
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    blank = thumbnails([Image.new("L", (99, 99), grey) for grey in (0, 9, 255)])
    assert len(set(near_copies([*blank]))) == 3


@pytest.mark.parametrize("order", [1, -1])
def test_of_copies_one_stays_unless_they_contradict(films: list[Image.Image], order: int) -> None:
    shown = thumbnails([films[0], saved(films[0], 80), ImageOps.mirror(films[0]), films[1]])
    files = enumerate(zip("FFNNNFN", "ppqrrss", strict=True), 1)  # class and pixels
    rows = [
        Row(f"x/{i}", c, "", pixels, "label: odd" * (i == 3), f"{i}") for i, (c, pixels) in files
    ]
    after = exclude_copies(rows[::order], dict(zip("pqrs", shown, strict=True)))[::order]
    reasons = ["3 is a near-copy"] * 2 + ["1 is a near-copy; label: odd", "", "copy of 4"]
    reasons += ["7 has the same pixels", "6 has the same pixels"]
    found = [row.reason.removeprefix("contradictory: ").replace("x/", "") for row in after]
    assert found == reasons
    assert [row.split for row in after] == ["excluded" * bool(row.reason) for row in after]
    groups = [row.group for row in after]
    assert [groups.index(group) for group in groups] == [0, 0, 0, 3, 3, 5, 5]
