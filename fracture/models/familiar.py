"""Is a picture like the films that a network was trained on?

The network's finest feature maps, pooled, vary along few directions over films. What these leave
unexplained of another picture is its distance; above that of nearly all validation films it gets a
caution. A photograph, a page of text or noise lies there, but so does an odd film.
"""

import torch

DIRECTIONS = 8  # as good as 16 on pictures kept for this choice, better than 4
SHARE = 0.99  # of the validation films get no caution

Familiar = dict[str, list]  # mean, axes and limit in plain values, for checkpoints


def fit_familiar(train: torch.Tensor, val: torch.Tensor) -> Familiar:
    """Learn what films look like.

    Args:
        train: (N, width) pooled maps of training films, as they are.
        val: those of validation films, which set the limit.
    """
    train, val = train.double(), val.double()
    mean = train.mean(0)
    axes = torch.linalg.svd(train - mean, full_matrices=False)[2][:DIRECTIONS]
    limit = _distance(val, mean, axes).quantile(SHARE)
    return {"mean": mean.tolist(), "axes": axes.tolist(), "limit": [limit.item()]}


def is_odd(pooled: torch.Tensor, familiar: Familiar) -> torch.Tensor:
    """(N, width) pooled maps to (N,) bool: farther away than nearly all validation films."""
    parts = (familiar[name] for name in ("mean", "axes", "limit"))
    mean, axes, limit = (torch.tensor(part, dtype=torch.float64) for part in parts)
    return _distance(pooled.double(), mean, axes) > limit


def _distance(pooled: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    centred = pooled - mean
    return (centred - centred @ axes.mT @ axes).norm(dim=1)
