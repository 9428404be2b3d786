"""Pictures that lie outside what films span get a caution."""

import numpy as np
import torch

from fracture.models.familiar import DIRECTIONS, fit_familiar, is_odd

RNG = np.random.default_rng(1)
SPAN = RNG.normal(size=(DIRECTIONS, 40))


def films(n: int) -> torch.Tensor:
    """They vary along a few directions, and a little along all."""
    near = 0.1 * RNG.normal(size=(n, 40))
    return torch.from_numpy(5 + RNG.normal(size=(n, DIRECTIONS)) @ SPAN + near)


def test_one_of_a_hundred_films_is_odd_and_what_lies_elsewhere_always() -> None:
    familiar = fit_familiar(films(400), films(400))
    assert 0 < is_odd(films(4000), familiar).double().mean() < 0.04
    assert is_odd(films(50) + torch.from_numpy(RNG.normal(size=(50, 40))), familiar).all()


def test_how_far_along_the_films_own_directions_does_not_matter() -> None:
    familiar = fit_familiar(films(400), films(400))
    far = 5 + 3 * RNG.normal(size=(200, DIRECTIONS)) @ SPAN
    assert not is_odd(torch.from_numpy(far), familiar).any()
