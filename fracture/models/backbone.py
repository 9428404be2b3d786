"""The frozen backbone. `architecture` is the one place to add another."""

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fracture.cli import InputError, one_line
from fracture.config import Config, Fit
from fracture.data.images import PREPROCESSING_VERSION
from fracture.distributed import RANK
from fracture.models.architecture import Architecture
from fracture.models.fusing import fuse_batchnorm
from fracture.models.weights import NORMALISATION, Weights, find_weights, load_tensors

EFFICIENTNETS = [f"efficientnet-b{i}" for i in range(9)]
LITE = [f"efficientnet-lite{i}" for i in range(3)]


def architecture(name: str) -> Architecture:
    """How to build a backbone. To add one, return its `Architecture` here.

    Raises:
        InputError: the name is unknown, or the package timm is missing.
    """
    if name in EFFICIENTNETS:
        from efficientnet_pytorch import EfficientNet, utils

        width = utils.round_filters(1280, utils.get_model_params(name, {})[1])  # 2,304 for B6
    elif name in LITE:
        from efficientnet_lite_pytorch import EfficientNet

        width = 1280  # the Lite networks keep B0's width here
    elif name.startswith("timm/"):
        from fracture.models.timm_models import timm_architecture

        return timm_architecture(name)
    else:
        near = get_close_matches(name, EFFICIENTNETS + LITE, n=1)
        advice = f"did you mean {near[0]!r}? " if near else ""
        allowed = ", ".join(EFFICIENTNETS + LITE)
        raise InputError(f"backbone is {name!r}; {advice}allowed: {allowed}, timm/NAME")

    def build(image_size: int) -> nn.Module:
        # image_size sets the strided convolutions' padding, else that of the native size (B6: 528).
        network = EfficientNet.from_name(name, image_size=image_size)
        del network._fc, network._dropout  # the head replaces both
        return network

    maps = EfficientNet.extract_features
    return Architecture(build, width, maps, fuse_batchnorm, _before_last_stride)


def _before_last_stride(network: Any) -> nn.Module:
    """The last block of an EfficientNet whose maps have a stride of 16 pixels."""
    blocks = [*network._blocks]
    strided = [i for i, block in enumerate(blocks) if max(block._depthwise_conv.stride) > 1]
    return blocks[strided[-1] - 1]


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that a feature vector depends on besides the image.

    Attributes:
        mirror: the backbone sees the mirror image.
        more: further views of the same image; heat maps show the first one alone.
        averaged: the views' features are averaged, not joined.
    """

    backbone: str
    weights: Weights
    image_size: int
    fit: Fit
    precision: str
    mirror: bool = False
    more: tuple["FeatureSpec", ...] = ()
    averaged: bool = False

    dtype = "<f4"

    @property
    def title(self) -> str:
        """Of the pass: the view."""
        return f"features, {self.fit}-{self.image_size}{'-mirror' * self.mirror}"

    @property
    def views(self) -> "list[FeatureSpec]":
        """Each view by itself."""
        return [replace(self, more=()), *self.more]

    @property
    def width(self) -> int:
        """Of the image's features."""
        return architecture(self.backbone).width * (1 if self.averaged else 1 + len(self.more))

    def with_views(self, names: Sequence[str], averaged: bool) -> "FeatureSpec":
        """The spec with more views, which the setting `views` names: letterbox-448-mirror."""
        more = tuple(
            replace(self, fit=fit, image_size=int(size), mirror=bool(mirror))  # type: ignore[arg-type]
            for fit, size, *mirror in (name.split("-") for name in names)
        )
        return replace(self, more=more, averaged=averaged)

    def merge(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The (N, width) features of each view to those of the image."""
        return torch.stack([*features]).mean(0) if self.averaged else torch.cat([*features], 1)

    def build(self, device: torch.device) -> nn.Module:
        """The network of the pass: (N, H, W) uint8 images to (N, width)."""
        return _build_once(self, device)

    def cache_key(self) -> dict[str, Any]:
        """The spec in plain values, without this machine's paths; equal for equal features."""
        own = architecture(self.backbone).normalisation
        mirror = {"mirror": True} if self.mirror else {}
        return mirror | {
            "backbone": self.backbone,
            "weights": self.weights.identity,
            "normalisation": f"{own[0]} {own[1]}" if own else self.weights.normalisation,
            "image_size": self.image_size,
            "fit": self.fit,
            "precision": self.precision.replace("bfloat16", "bfloat16, weights too"),
            "preprocessing": PREPROCESSING_VERSION,
        }


@lru_cache(4)  # or every film of a page would wait for the weights
def _build_once(spec: FeatureSpec, device: torch.device) -> nn.Module:
    return Backbone(spec).to(device)


def configured_spec(config: Config, precision: str) -> FeatureSpec:
    """The configured backbone with its weights; prints what to know about them.

    Raises:
        InputError: there is no such backbone, or no such weights.
    """
    own = architecture(config.backbone).image_size  # first: it names the nearest backbone
    weights = find_weights(config.backbone, config.weights, config.seed)
    if weights.path is None and RANK == 0:
        print("WARNING: the backbone's weights are random: good for timing, not for results")
    elif own and own != config.image_size and RANK == 0:
        print(f"{config.backbone} was pretrained at {own} pixels; --image_size {own} uses that")
    spec = FeatureSpec(config.backbone, weights, config.image_size, config.fit, precision)
    return spec.with_views(config.views, config.average_views)


class Backbone(nn.Module):
    """A frozen network without its classifier, with its weights: images to pooled features.

    Every parameter has its gradient off, and the module stays in eval mode whatever `train()` asks:
    in train mode each pass would move BatchNorm's statistics, and drop-connect is random.

    Raises:
        InputError: the weights do not fit the network.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        keep_freed_memory()
        self.architecture, self.mirror = architecture(spec.backbone), spec.mirror
        if spec.weights.source == "none":
            torch.manual_seed(int(spec.weights.identity.rsplit("=", 1)[1]))
        self.network = self.architecture.build(spec.image_size).eval()
        if path := spec.weights.path:
            state = {k: v for k, v in load_tensors(path).items() if not k.startswith("_fc.")}
            try:
                if self.architecture.adapt:
                    state = self.architecture.adapt(self.network, state)
                self.network.load_state_dict(state)
            except Exception as error:  # timm's functions meet all kinds of files
                reason = one_line(error, 80)  # torch names each of hundreds of missing tensors
                raise InputError(f"{path} has no weights of {spec.backbone}: {reason}") from error
        if self.architecture.optimize:
            self.architecture.optimize(self.network)
        if spec.precision == "bfloat16":
            self.network.bfloat16()
        mean, std = self.architecture.normalisation or NORMALISATION[spec.weights.normalisation]
        self.mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002
        return super().train(False)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width, h, w) float feature maps."""
        if self.mirror:
            images = images.flip(2)
        pixels = (images.unsqueeze(1) / 255 - self.mean) / self.std
        dtype = next(self.network.parameters()).dtype
        pixels = pixels.to(dtype, memory_format=torch.channels_last)
        return self.architecture.feature_maps(self.network, pixels).float()

    def pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps, and before them those of twice the resolution if they are known."""
        if self.architecture.finer is None:
            return [self.feature_maps(images)]
        found: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            found.append(output.float())

        hook = self.architecture.finer(self.network).register_forward_hook(keep)
        try:
            last = self.feature_maps(images)
        finally:
            hook.remove()
        return [*found, last]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width) float features (global average pooling)."""
        return self.feature_maps(images).mean((2, 3))


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors.

    Otherwise the kernel maps each large one anew and fills it with zeros: on a CPU up to a quarter
    of a pass's time with B6, and half with Lite0.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 2**31 - 1):  # M_MMAP_THRESHOLD, in bytes; an old glibc may refuse this
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
