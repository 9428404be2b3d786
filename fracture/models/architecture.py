"""What the project needs to know about a backbone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """How to build a backbone, and where its features are.

    Attributes:
        build: makes the network for an image size in pixels.
        width: the length of its feature vector.
        feature_maps: (network, (N, 3, H, W) float images) to (N, width, h, w) feature maps.
        optimize: speeds up a network that has its weights; the features stay the same.
        finer: the module that puts out the last maps of twice the resolution, for a fracture map.
        adapt: the tensors of a file to those of a network.
        normalisation: mean and deviation; None: those of the weights' source.
        image_size: pixels of the weights' training, if they are known.
    """

    build: Callable[[int], nn.Module]
    width: int
    feature_maps: Callable[[Any, torch.Tensor], torch.Tensor]
    optimize: Callable[[nn.Module], None] | None = None
    finer: Callable[[Any], nn.Module] | None = None
    adapt: Callable[[nn.Module, dict[str, Any]], dict[str, Any]] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    image_size: int | None = None
