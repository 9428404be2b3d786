"""Is a picture like the films that a network was trained on?

The network's finest feature maps, pooled, vary along few directions over films. What these leave
unexplained of another picture is its distance; above that of nearly all validation films it gets a
caution. A photograph, a page of text or noise lies there, but so does an odd film.
"""

import numpy as np

DIRECTIONS = 8  # as good as 16 on pictures kept for this choice, better than 4
SHARE = 0.99  # of the validation films get no caution

Familiar = dict[str, list]  # mean, axes and limit in plain values, for checkpoints


def fit_familiar(train: np.ndarray, val: np.ndarray) -> Familiar:
    """Learn what films look like.

    Args:
        train: (N, width) pooled maps of training films, as they are.
        val: those of validation films, which set the limit.
    """
    mean = train.mean(0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:DIRECTIONS]
    limit = np.quantile(_distance(val, mean, axes), SHARE)
    return {"mean": mean.tolist(), "axes": axes.tolist(), "limit": [float(limit)]}


def is_odd(pooled: np.ndarray, familiar: Familiar) -> np.ndarray:
    """(N, width) pooled maps to (N,) bool: farther away than nearly all validation films."""
    mean, axes, limit = (np.array(familiar[name]) for name in ("mean", "axes", "limit"))
    return _distance(pooled, mean, axes) > limit


def _distance(pooled: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    centred = pooled - mean
    return np.linalg.norm(centred - centred @ axes.T @ axes, axis=1)
