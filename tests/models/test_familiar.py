"""Pictures that lie outside what films span get a caution."""

import numpy as np

from fracture.models.familiar import DIRECTIONS, fit_familiar, is_odd

RNG = np.random.default_rng(1)
SPAN = RNG.normal(size=(DIRECTIONS, 40))


def films(n: int) -> np.ndarray:
    """They vary along a few directions, and a little along all."""
    return 5 + RNG.normal(size=(n, DIRECTIONS)) @ SPAN + 0.1 * RNG.normal(size=(n, 40))


def test_one_of_a_hundred_films_is_odd_and_what_lies_elsewhere_always() -> None:
    familiar = fit_familiar(films(400), films(400))
    assert 0 < is_odd(films(4000), familiar).mean() < 0.04
    assert is_odd(films(50) + RNG.normal(size=(50, 40)), familiar).all()


def test_how_far_along_the_films_own_directions_does_not_matter() -> None:
    familiar = fit_familiar(films(400), films(400))
    far = 5 + 3 * RNG.normal(size=(200, DIRECTIONS)) @ SPAN
    assert not is_odd(far, familiar).any()
