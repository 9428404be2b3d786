"""The frozen backbone. `architecture` is the one place to add another."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fracture.cli import InputError, one_line
from fracture.config import Fit
from fracture.data.images import PREPROCESSING_VERSION
from fracture.models.weights import NORMALISATION, Weights, load_tensors


@dataclass(frozen=True)
class Architecture:
    """What the project needs to know about a backbone.

    Attributes:
        build: makes the network for an image size in pixels.
        width: the length of its feature vector.
        feature_maps: (N, 3, H, W) float images to (N, width, h, w) feature maps.
        optimize: speeds up the network with its weights loaded, without changing what it computes.
    """

    build: Callable[[int], nn.Module]
    width: int
    feature_maps: Callable[[Any, torch.Tensor], torch.Tensor]
    optimize: Callable[[nn.Module], None] | None = None


def architecture(name: str) -> Architecture:
    """How to build a backbone. To add one, add its name and its `Architecture` here.

    Raises:
        InputError: the name is unknown.
    """
    efficientnets = [f"efficientnet-b{i}" for i in range(9)]
    lite = [f"efficientnet-lite{i}" for i in range(3)]
    if name in efficientnets:
        from efficientnet_pytorch import EfficientNet, utils

        width = utils.round_filters(1280, utils.get_model_params(name, {})[1])  # 2,304 for B6
    elif name in lite:
        from efficientnet_lite_pytorch import EfficientNet

        width = 1280  # the Lite networks keep B0's width here
    else:
        known = ", ".join(efficientnets + lite)
        raise InputError(f"backbone is {name!r}; allowed: {known}")

    def build(image_size: int) -> nn.Module:
        # image_size sets the padding of the strided convolutions, which the library would
        # otherwise compute for the network's native size (528 for B6).
        network = EfficientNet.from_name(name, image_size=image_size)
        del network._fc, network._dropout  # the head replaces both
        return network

    return Architecture(build, width, EfficientNet.extract_features, fuse_batchnorm)


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that a feature vector depends on besides the image."""

    backbone: str
    weights: Weights
    image_size: int
    fit: Fit
    precision: str

    def cache_key(self) -> dict[str, Any]:
        """The spec in plain values, without this machine's paths; equal for equal features."""
        return {
            "backbone": self.backbone,
            "weights": self.weights.identity,
            "normalisation": self.weights.normalisation,
            "image_size": self.image_size,
            "fit": self.fit,
            "precision": self.precision.replace("bfloat16", "bfloat16, weights too"),
            "preprocessing": PREPROCESSING_VERSION,
        }


class Backbone(nn.Module):
    """A frozen network without its classifier: images to pooled features.

    Every parameter has its gradient off, and the module stays in eval mode whatever `train()` asks:
    in train mode each pass would move BatchNorm's statistics, and drop-connect is random.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.architecture = architecture(spec.backbone)
        self.net = self.architecture.build(spec.image_size)
        mean, std = NORMALISATION[spec.weights.normalisation]
        self.mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002
        return super().train(False)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width, H / 32, W / 32) float feature maps."""
        pixels = (images.unsqueeze(1) / 255 - self.mean) / self.std
        dtype = next(self.net.parameters()).dtype
        pixels = pixels.to(dtype, memory_format=torch.channels_last)
        return self.architecture.feature_maps(self.net, pixels).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width) float features (global average pooling)."""
        return self.feature_maps(images).mean((2, 3))


def build_backbone(spec: FeatureSpec, device: torch.device | None = None) -> Backbone:
    """The backbone with its weights, in its precision, on a device (by default the CPU).

    Raises:
        InputError: the weights do not fit the backbone.
    """
    if device and device.type == "cpu":
        _keep_freed_memory()
    if spec.weights.path is None:
        torch.manual_seed(int(spec.weights.identity.rsplit("=", 1)[1]))
    backbone = Backbone(spec)
    if path := spec.weights.path:
        state = load_tensors(path)
        try:
            backbone.net.load_state_dict(
                {key: value for key, value in state.items() if not key.startswith(("_fc.", "fc."))}
            )
        except (RuntimeError, AttributeError) as error:
            reason = one_line(error)[:80]  # torch names each of hundreds of missing tensors
            raise InputError(f"{path} holds no weights of {spec.backbone}: {reason}") from error
    if backbone.architecture.optimize:
        backbone.architecture.optimize(backbone.net)
    backbone.requires_grad_(False).to(memory_format=torch.channels_last)
    if spec.precision == "bfloat16":
        backbone.net.bfloat16()
    return backbone.to(device)


def fuse_batchnorm(net: nn.Module) -> None:
    """Fuse an EfficientNet's BatchNorms and even paddings into its convolutions.

    In eval mode a BatchNorm is a fixed scale and shift (Jacob et al., CVPR 2018, sec. 3.2), so the
    features stay the same to float precision, and a pass on a CPU takes half the time.
    """
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
        left, right, top, bottom = getattr(fused.static_padding, "padding", (0, 0, 0, 0))
        if left == right and top == bottom:  # the strided ones are uneven and copy the image
            fused.padding, fused.static_padding = (top, left), nn.Identity()
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in net.modules():
        if type(getattr(module, "_swish", None)).__name__ == "MemoryEfficientSwish":
            module._swish = nn.SiLU(inplace=True)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors.

    Otherwise the kernel maps each large tensor anew and fills it with zeros, which costs a pass up
    to a quarter of its time with B6, and half with Lite0.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 2**31 - 1):  # M_MMAP_THRESHOLD, in bytes; an old glibc may refuse this
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
