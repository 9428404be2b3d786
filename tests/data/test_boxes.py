"""Boxes lie on the square where their film does, and come back."""

import io

import numpy as np
import pytest
from PIL import Image

from fracture.config import Fit
from fracture.data.boxes import FilmBoxes, box_mask, to_film
from fracture.data.images import load_image

BOX = np.array([(0.25, 0.5), (0.5, 0.625)])


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [(320, 160), (160, 320), (320, 320)])
def test_a_mask_covers_what_the_box_covers_on_the_image(fit: Fit, size: tuple[int, int]) -> None:
    (left, top), (right, low) = np.rint(BOX * size).astype(int)
    grey = np.zeros(size[::-1], np.uint8)
    grey[top:low, left:right] = 255
    Image.fromarray(grey).save(file := io.BytesIO(), "PNG")
    seen = load_image(file.getvalue(), 320, fit).reshape(40, 8, 40, 8).mean((1, 3)) > 127
    film = FilmBoxes(size, [BOX])
    assert (box_mask(film, fit, 40).numpy() == seen).all()
    assert to_film(film.on_square(fit)[0], size, fit) == pytest.approx(BOX)


def test_a_box_that_leaves_the_film_ends_at_its_edge() -> None:
    box = to_film(np.array([(-0.2, 0.4), (0.5, 1.3)]), (100, 100), "squash")
    assert box == pytest.approx(np.array([(0, 0.4), (0.5, 1)]))
