"""A trained head with its backbone's spec: features in, probabilities and decisions out."""

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


def p_column(positive: str) -> str:
    """The name of the column of probabilities in every table of predictions."""
    return f"p_{positive.lower().replace(' ', '_')}"


def load_classifier(checkpoint: dict[str, Any], weights_file: str, precision: str) -> Classifier:
    """Rebuild what train.py saved.

    Args:
        checkpoint: content of best.pt.
        weights_file: the backbone's weights, for a run that was trained on weights from a file.
        precision: of the backbone on this machine.

    Raises:
        InputError: head, backbone's weights or preprocessing differ from those of the training.
    """
    then, settings, source = (checkpoint[key] for key in ("recipe", "settings", "weights"))
    wanted = weights_file if source.startswith("file ") else settings["weights"]
    weights = find_weights(then["backbone"], wanted, settings["seed"])
    spec = FeatureSpec(then["backbone"], weights, then["image_size"], then["fit"], precision)
    for name, now in spec.cache_key().items():
        if now != then[name] and name != "precision":
            hint = "pass the run's --weights FILE, or train again"
            raise InputError(f"the run was trained with {name} {then[name]}, not {now}; {hint}")
    head = build_head(architecture(spec.backbone).width, dropout=0).eval()
    try:
        head.load_state_dict(checkpoint["head"])
    except RuntimeError as error:
        reason = one_line(error)[:100]
        raise InputError(f"models/head.py makes another head than the run's: {reason}") from error
    index = checkpoint["classes"].index(checkpoint["positive_class"])
    classes = checkpoint["classes"][index], checkpoint["classes"][1 - index]
    calibration = checkpoint["temperature"], checkpoint["thresholds"]
    return Classifier(head, spec, classes, index, *calibration)
