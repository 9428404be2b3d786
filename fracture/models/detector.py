"""The whole network of finetune.py: backbone, head, and a map of where the fractures are."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from tqdm import tqdm

from fracture.cli import InputError
from fracture.distributed import RANK
from fracture.models.backbone import Backbone, FeatureSpec
from fracture.models.head import build_head, log_odds

BATCH = 32  # images at a time when not training
HEAD_ALONE = [1.0, 0.0, 0.0]  # as a `join` where there is no map
MAP_WIDTH = 64  # channels in which the coarse and the fine feature maps meet


class Detector(nn.Module):
    """Images to two logits, and one log-odds for each cell of a map: does a fracture box touch it?

    All of it can be trained. An EfficientNet's BatchNorms are fused into its convolutions: their
    statistics stay as they are, and a step on a CPU is faster. Those of a network of timm's keep
    their statistics too, as the backbone is always in eval mode.

    The map joins an EfficientNet's last feature maps (stride 32) with those before the last
    downsampling (stride 16), as in a feature pyramid (Lin et al., CVPR 2017, sec. 3); of a network
    of timm's it has the last ones alone.

    Args:
        spec: the backbone with its first weights, and how it sees an image; in bfloat16 the weights
            stay float32 (autocast).
        positive: index of the positive class.
        dropout: of the head.
        has_map: False if there are no boxes to train on; the map is then what the head says of each
            cell, which for a linear head is the class activation map.
        mirror: judge the mirror image too when not training.
    """

    def __init__(
        self, spec: FeatureSpec, positive: int, dropout: float, has_map: bool, mirror: bool
    ) -> None:
        super().__init__()
        if spec.more:
            raise InputError("views is a setting of train.py; finetune.py sees an image in one way")
        self.spec, self.positive, self.mirror = spec, positive, mirror
        self.autocast = spec.precision == "bfloat16"
        self.backbone = Backbone(replace(spec, precision="float32")).requires_grad_(True)
        width = self.backbone.architecture.width
        self.head = build_head(width, dropout)
        with torch.no_grad():
            maps = self.backbone.pyramid(torch.zeros(1, spec.image_size, spec.image_size))
        self.map = FractureMap([m.shape[1] for m in maps]) if has_map else None
        finest = maps[0 if has_map else -1]
        self.map_shape = finest.shape[2], finest.shape[3]

    def freeze_first(self, share: float) -> None:
        """Freeze this share of the backbone's layers, counted from the input.

        They tell edges and textures, which films share with photographs (Yosinski et al., "How
        transferable are features", NeurIPS 2014), and have the largest maps to go back through.
        """
        layers = [weight for weight in self.backbone.parameters() if weight.ndim > 1]
        first = next(iter(layers[round(share * len(layers)) :]), None)  # of those that learn
        for weight in takewhile(lambda weight: weight is not first, self.backbone.parameters()):
            weight.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W) grey levels to (N, 2 + h * w): the logits, then the map's log-odds.

        In eval mode they are the mean of those of the image and of its mirror image.
        """
        return self.observe(images)[0]

    def observe(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs, and the image's finest feature maps, pooled, for `familiar`."""
        outputs, pooled = self.judge(images)
        if self.training or not self.mirror:
            return outputs, pooled
        mirrored, _ = self.judge(images.flip(2))
        cells = mirrored[:, 2:].unflatten(1, self.map_shape).flip(2).flatten(1)
        return (outputs + torch.cat([mirrored[:, :2], cells], 1)) / 2, pooled

    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for the images as they are."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            maps = self.backbone.pyramid(images)  # float32; bfloat16 would round the scores, too
        logits = self.head(maps[-1].mean((2, 3)))
        if self.map:
            cells = self.map(maps)
        else:
            cell_logits = self.head(maps[-1].permute(0, 2, 3, 1).flatten(0, 2))
            odds = cell_logits[:, self.positive] - cell_logits[:, 1 - self.positive]
            cells = odds.unflatten(0, (images.shape[0], -1))  # an export keeps it open
        return torch.cat([logits, cells.flatten(1)], 1), maps[0].mean((2, 3))


class FractureMap(nn.Module):
    """Feature maps, the finest first, to (N, 1, h, w) log-odds at the resolution of the finest."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, MAP_WIDTH, 1) for width in widths)
        self.cell = nn.Conv2d(MAP_WIDTH, 1, 1)
        # Begin with few fractures everywhere, or the first steps only learn how rare they are
        # (Lin et al., "Focal Loss", ICCV 2017, sec. 4.1).
        nn.init.constant_(self.cell.bias, -3)  # type: ignore[arg-type]

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        size = maps[0].shape[2:]
        layers = [lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)]
        layers = [interpolate(layer, size, mode="bilinear") for layer in layers]
        return self.cell(torch.stack(layers).sum(0).relu())


@dataclass(frozen=True, kw_only=True)
class DetectorSpec(FeatureSpec):
    """A trained network in place of a frozen backbone: its outputs are the features."""

    network: Detector

    @property
    def width(self) -> int:
        return 2 + math.prod(self.network.map_shape)

    def build(self, device: torch.device) -> nn.Module:
        return self.network.eval().to(device)

    def cache_key(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for weight in self.network.state_dict().values():
            digest.update(weight.cpu().numpy().tobytes())
        trained = f"sha256:{digest.hexdigest()}"
        return super().cache_key() | {"trained": trained, "mirror": self.network.mirror}


def predict_scores(network: Detector, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H, W) uint8 images to their `image_scores` and their pooled maps, in eval mode."""
    outputs, pooled = _in_batches(network, network.observe, images)
    return image_scores(outputs, network.positive), pooled


def pooled_maps(network: Detector, images: torch.Tensor) -> torch.Tensor:
    """The pooled maps alone, in half the time: they need no mirror image."""
    return _in_batches(network, network.judge, images)[1]


@torch.inference_mode()
def _in_batches(
    network: Detector, see: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], images: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    network.eval()
    device, hidden = next(network.parameters()).device, RANK > 0 or None
    batches = tqdm(images.split(BATCH), desc="validation", leave=False, disable=hidden)
    parts = zip(*(see(batch.to(device)) for batch in batches), strict=True)
    return tuple(torch.cat(part).cpu() for part in parts)


def image_scores(outputs: torch.Tensor, positive: int) -> torch.Tensor:
    """(N, 2 + h * w) outputs to (N, 2) float64: the head's log-odds, and the map's hottest cell."""
    return torch.stack([log_odds(outputs[:, :2], positive), outputs[:, 2:].double().amax(1)], 1)


def join_scores(scores: torch.Tensor, join: Sequence[float], positive: int) -> torch.Tensor:
    """(N, 2) scores to (N, 2) float64 logits, of which the negative class's is 0.

    Args:
        scores: from `image_scores`.
        join: the weight of each score, and a constant.
        positive: index of the positive class.
    """
    odds = scores @ torch.tensor(join[:2], dtype=torch.float64) + join[2]
    return torch.stack([odds * (index == positive) for index in (0, 1)], 1)
