"""The head: features to two logits. `build_head` is the one place to change it."""

from collections import OrderedDict

import torch
from torch import nn


class Dropout(nn.Module):
    """nn.Dropout with torch.rand's numbers, which are the same on every processor.

    nn.Dropout's own draws differ on Intel's processors, and take more than half of a head's
    training time on a CPU.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return inputs
        keep = torch.rand_like(inputs) >= self.p
        return inputs * (keep / (1 - self.p))


def build_head(width: int, dropout: float) -> nn.Module:
    """A head for (N, width) features that returns (N, 2) logits.

    Training, resuming, testing and heat maps work with any module.
    """
    return nn.Sequential(OrderedDict(dropout=Dropout(dropout), linear=nn.Linear(width, 2)))


@torch.inference_mode()
def predict_logits(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """(N, width) features to (N, 2) logits, in eval mode."""
    return head.eval()(features)


def log_odds(logits: torch.Tensor, positive: int) -> torch.Tensor:
    """(N, 2) logits to (N,) float64: the positive class's logit minus the other's."""
    logits = logits.double()
    return logits[:, positive] - logits[:, 1 - positive]
