"""A trained run as what it is used for: features in, calibrated probabilities and decisions out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from fracture.cli import InputError
from fracture.config import POINTS, Fit
from fracture.evaluation.metrics import calibrated
from fracture.features.cache import StoredFeatures
from fracture.features.extract import Recipe
from fracture.models.backbone import (
    Backbone,
    Head,
    class_margin,
    feature_width,
    find_weights,
    head_logits,
)


def p_column(positive: str) -> str:
    """What the column of probabilities is called in every table of predictions."""
    return f"p_{positive.lower().replace(' ', '_')}"


@dataclass(frozen=True)
class Classifier:
    """A trained head with all that it needs to judge an image; nothing is left to choose.

    Attributes:
        head: in eval mode.
        recipe: the backbone, and what it is shown.
        positive: the class that p is of.
        negative: the other one.
        positive_index: the positive class's logit.
        temperature: fitted on validation.
        thresholds: chosen on validation, by the name of the operating point.
    """

    head: Head
    recipe: Recipe
    positive: str
    negative: str
    positive_index: int
    temperature: float
    thresholds: dict[str, float]

    @property
    def column(self) -> str:
        return p_column(self.positive)

    def margin(self, features: torch.Tensor | StoredFeatures) -> np.ndarray:
        """(N, width) features to (N,) float64: the positive class's logit less the other's."""
        return class_margin(head_logits(self.head, features), self.positive_index)

    def p_positive(self, features: torch.Tensor | StoredFeatures) -> np.ndarray:
        """(N, width) features to (N,) calibrated probabilities of the positive class."""
        return calibrated(self.margin(features), self.temperature)

    def decide(self, p_positive: float, operating_point: str) -> str:
        return self.positive if p_positive >= self.thresholds[operating_point] else self.negative

    @torch.inference_mode()
    def heat(self, backbone: Backbone, images: torch.Tensor) -> np.ndarray:
        """Class activation maps (Zhou et al., CVPR 2016, eq. 2), which for a linear head on pooled
        features are Grad-CAM too: where the evidence for the positive class lies.

        Args:
            backbone: of this recipe.
            images: (N, H, W) uint8.

        Returns:
            (N, H / 32, W / 32) float64, calibrated logits: that of an image which looked like this
            everywhere. Their mean is the image's own.
        """
        maps = backbone.feature_maps(images)
        weight, bias = self.head.linear.weight, self.head.linear.bias
        logits = torch.einsum("ck,nkhw->nchw", weight, maps) + bias[:, None, None]
        return class_margin(logits, self.positive_index) / self.temperature


def restore(checkpoint: dict[str, Any], weights_file: str, precision: str) -> Classifier:
    """Rebuild what was trained.

    Args:
        checkpoint: as train.py saved it.
        weights_file: where they are, for a run that was trained on weights from a file.
        precision: of the backbone on this machine.

    Raises:
        InputError: the backbone's weights or the preprocessing here are not those of the training.
        AttributeError, LookupError, RuntimeError, TypeError, ValueError: it is of another program.
    """
    trained, then, positive = (checkpoint[key] for key in ("recipe", "settings", "positive_class"))
    if trained["fit"] not in get_args(Fit) or trained["image_size"] not in range(32, 2049):
        raise ValueError("recipe is out of range")
    from_file = checkpoint["weights"].startswith("file ")
    named = weights_file if from_file else then["weights"]
    weights = find_weights(trained["backbone"], named, then["seed"])
    recipe = Recipe(trained["backbone"], weights, trained["image_size"], trained["fit"], precision)
    for name, value in recipe.describe().items():
        if value != trained[name] and name != "precision":
            raise InputError(
                f"the run was trained with {name} {trained[name]} ({checkpoint['weights']} "
                f"weights), not {value}; pass its --weights FILE, or train again"
            )
    head = Head(feature_width(recipe.backbone), dropout=0).eval()
    head.load_state_dict(checkpoint["head"])
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise ValueError("the head's numbers are not finite")
    index, (first, second) = checkpoint["classes"].index(positive), checkpoint["classes"]
    temperature, thresholds = checkpoint["temperature"], checkpoint["thresholds"]
    if first == second:
        raise ValueError("both classes have one name")
    if not (0 < temperature < math.inf and all(0 <= thresholds[name] <= 1 for name in POINTS)):
        raise ValueError("temperature or thresholds are out of range")
    negative = first if index else second
    return Classifier(head, recipe, positive, negative, index, temperature, thresholds)
