"""A trained run, ready to use: features in, calibrated probabilities and decisions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from fracture.cli import InputError, one_line
from fracture.models.backbone import FeatureSpec, architecture
from fracture.models.head import build_head, linear_layer, log_odds, predict_logits
from fracture.models.weights import find_weights


def p_column(positive: str) -> str:
    """The name of the column of probabilities in every table of predictions."""
    return f"p_{positive.lower().replace(' ', '_')}"


@dataclass(frozen=True)
class Classifier:
    """A trained head with all that it needs to judge an image; nothing is left to choose.

    Attributes:
        head: in eval mode.
        spec: the backbone, and how it sees an image.
        classes: the positive one first.
        positive_index: of the positive class's logit.
        temperature: fitted on validation.
        thresholds: chosen on validation, by the name of the operating point.
    """

    head: nn.Module
    spec: FeatureSpec
    classes: tuple[str, str]
    positive_index: int
    temperature: float
    thresholds: dict[str, float]

    @property
    def column(self) -> str:
        return p_column(self.classes[0])

    def log_odds(self, features: torch.Tensor) -> np.ndarray:
        """(N, width) features to (N,) float64, before calibration."""
        return log_odds(predict_logits(self.head, features), self.positive_index)

    def p_positive(self, features: torch.Tensor) -> np.ndarray:
        """(N, width) features to (N,) calibrated probabilities of the positive class."""
        return expit(self.log_odds(features) / self.temperature)

    def decide(self, p_positive: float, operating_point: str) -> str:
        return self.classes[0 if p_positive >= self.thresholds[operating_point] else 1]

    def cam(self, maps: torch.Tensor) -> torch.Tensor:
        """Class activation maps (Zhou et al., CVPR 2016, eq. 2): where the evidence lies.

        For a linear head on pooled features they equal Grad-CAM.

        Args:
            maps: (N, width, h, w) from `Backbone.feature_maps`.

        Returns:
            (N, h, w) float64 calibrated log-odds: those of an image that looked like this
            everywhere. Their mean is the image's own.

        Raises:
            InputError: the head is not one linear layer.
        """
        if (layer := linear_layer(self.head)) is None:
            raise InputError("heat maps need a head of one linear layer")
        weight, bias = layer.weight.to(maps.device), layer.bias.to(maps.device)
        logits = (torch.einsum("ck,nkhw->nchw", weight, maps) + bias[:, None, None]).double()
        positive = self.positive_index
        return (logits[:, positive] - logits[:, 1 - positive]) / self.temperature


def load_classifier(checkpoint: dict[str, Any], weights_file: str, precision: str) -> Classifier:
    """Rebuild what train.py saved.

    Args:
        checkpoint: content of best.pt.
        weights_file: the backbone's weights, for a run that was trained on weights from a file.
        precision: of the backbone on this machine.

    Raises:
        InputError: the head is another one, or the backbone's weights or the preprocessing here
            are not those of the training.
    """
    trained, settings = checkpoint["recipe"], checkpoint["settings"]
    from_file = checkpoint["weights"].startswith("file ")
    source = weights_file if from_file else settings["weights"]
    weights = find_weights(trained["backbone"], source, settings["seed"])
    spec = FeatureSpec(
        trained["backbone"], weights, trained["image_size"], trained["fit"], precision
    )
    for name, value in spec.cache_key().items():
        if value != trained[name] and name != "precision":
            raise InputError(
                f"the run was trained with {name} {trained[name]} ({checkpoint['weights']} "
                f"weights), not {value}; pass its --weights FILE, or train again"
            )
    head = build_head(architecture(spec.backbone).width, dropout=0).eval()
    try:
        head.load_state_dict(checkpoint["head"])
    except RuntimeError as error:
        raise InputError(
            "the run was trained with another head than build_head makes in models/head.py: "
            f"{one_line(error)[:100]}"
        ) from error
    index = checkpoint["classes"].index(checkpoint["positive_class"])
    classes = checkpoint["classes"][index], checkpoint["classes"][1 - index]
    return Classifier(
        head, spec, classes, index, checkpoint["temperature"], checkpoint["thresholds"]
    )
