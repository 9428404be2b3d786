"""A trained head with its backbone's spec: features in, probabilities and decisions out."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from fracture.cli import InputError, one_line
from fracture.config import FinetuneConfig
from fracture.models.backbone import FeatureSpec
from fracture.models.detector import Detector, DetectorSpec, image_scores, join_scores
from fracture.models.familiar import Familiar, is_odd
from fracture.models.head import build_head, log_odds, predict_logits
from fracture.models.weights import Weights, find_weights

AnyModule = TypeVar("AnyModule", bound=nn.Module)


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
        curve: thresholds in falling order, with sensitivity and specificity on validation; None in
            an older run.
        tested: what the test found at each operating point, of a packed run.
    """

    head: nn.Module
    spec: FeatureSpec
    classes: tuple[str, str]
    positive_index: int
    temperature: float
    thresholds: dict[str, float]
    curve: list[list[float]] | None = None
    tested: dict[str, Any] | None = None

    @property
    def has_marks(self) -> bool:
        """Does the heat map say where fractures are? Else it says where evidence lies."""
        return False

    @property
    def column(self) -> str:
        return p_column(self.classes[0])

    def log_odds(self, features: torch.Tensor) -> torch.Tensor:
        """(N, width) features to (N,) float64, before calibration."""
        return log_odds(predict_logits(self.head, features), self.positive_index)

    def p_positive(self, features: torch.Tensor) -> np.ndarray:
        """(N, width) features to (N,) calibrated probabilities of the positive class."""
        return (self.log_odds(features) / self.temperature).sigmoid().numpy()

    def decide(self, p_positive: float, operating_point: str) -> str:
        return self.classes[0 if p_positive >= self.thresholds[operating_point] else 1]

    def add_point(self, name: str) -> None:
        """Add an operating point: 0.3, or sensitivity=0.95 or specificity=0.9 on validation.

        Of the thresholds that reach the target, the one that costs least of the other.

        Raises:
            InputError: the run is older than such targets.
        """
        kind, _, value = name.rpartition("=")
        if name in self.thresholds:
            return
        if not kind:
            self.thresholds[name] = float(value)
            return
        if self.curve is None:
            raise InputError(f"--at {name}: the run has no validation curve; train again")
        thresholds, sensitivity, specificity = self.curve
        reached = sensitivity if kind == "sensitivity" else specificity
        good = [t for t, share in zip(thresholds, reached, strict=True) if share >= float(value)]
        if not good:
            raise InputError(f"--at {name}: no threshold reached that on validation")
        self.thresholds[name] = max(good) if kind == "sensitivity" else min(good)

    def stored_heat(self, features: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG002
        """The (N, h, w) heat maps if the features hold them; else `explain` has to make them."""
        return None

    def explain(self, network: Any, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Class activation maps (Zhou et al., CVPR 2016, eq. 2): where the evidence lies.

        For a linear head on pooled features they equal Grad-CAM, and their mean is the image's own
        log-odds.

        Args:
            network: from `build` of the first view.
            images: (N, H, W) uint8, on its device.

        Returns:
            The (N, width) features of the first view, (N, h, w) float64 calibrated log-odds: those
            of an image that looked like this everywhere, and whose other views said nothing; and
            (N,) bool: is the image unlike the films of the training?
        """
        maps = network.feature_maps(images).cpu()
        n, _, height, width = maps.shape
        cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
        cells = self.spec.merge([cells] + [torch.zeros_like(cells)] * len(self.spec.more))
        heat = self.log_odds(cells).reshape(n, height, width) / self.temperature
        return maps.mean((2, 3)), heat, torch.zeros(n, dtype=torch.bool)

    def conclude(
        self, features: torch.Tensor, heat: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The calibrated probabilities, (N,), and the heat maps with what other views add.

        Args:
            features: (N, width), of all views.
            heat: (N, h, w) from `explain`.
        """
        odds = self.log_odds(features) / self.temperature
        if self.spec.more:  # of a linear head, a map's mean is again the image's log-odds
            heat = heat + (odds - heat.mean((1, 2)))[:, None, None]
        return odds.sigmoid(), heat


@dataclass(frozen=True, kw_only=True)
class DetectorClassifier(Classifier):
    """The same for a run of finetune.py, whose features are its network's outputs.

    Attributes:
        join: how validation joined the head's score with the map's.
        familiar: what the films of the training look like; None in an older run.
    """

    spec: DetectorSpec
    join: list[float]
    familiar: Familiar | None

    @property
    def has_marks(self) -> bool:
        return self.spec.network.map is not None

    def log_odds(self, features: torch.Tensor) -> torch.Tensor:
        scores = image_scores(features, self.positive_index)
        return log_odds(join_scores(scores, self.join, self.positive_index), self.positive_index)

    def stored_heat(self, features: torch.Tensor) -> torch.Tensor:
        """(N, h, w) log-odds that a fracture box touches a cell."""
        return features[:, 2:].unflatten(1, self.spec.network.map_shape)

    def explain(self, network: Any, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, the heat that they hold, and whether the images are odd."""
        outputs, pooled = (part.cpu() for part in network.observe(images))
        nothing = torch.zeros(images.shape[0], dtype=torch.bool)  # not len: an export keeps it open
        odd = is_odd(pooled, self.familiar) if self.familiar else nothing
        return outputs, self.stored_heat(outputs), odd


def p_column(positive: str) -> str:
    """The name of the column of probabilities in every table of predictions."""
    return f"p_{positive.lower().replace(' ', '_')}"


def load_classifier(checkpoint: dict[str, Any], weights_file: str, precision: str) -> Classifier:
    """Rebuild what train.py or finetune.py saved.

    Args:
        checkpoint: content of best.pt.
        weights_file: the backbone's weights, for a run that was trained on weights from a file.
        precision: of the backbone on this machine.

    Raises:
        InputError: head, backbone's weights or preprocessing differ from those of the training.
    """
    then, settings, source = (checkpoint[key] for key in ("recipe", "settings", "weights"))
    is_detector = checkpoint.get("script") == FinetuneConfig.script
    if is_detector:  # the checkpoint holds all weights
        weights = Weights(source, None, then["weights"])
    else:
        wanted = weights_file if source.startswith("file ") else settings["weights"]
        weights = find_weights(then["backbone"], wanted, settings["seed"])
    spec = FeatureSpec(then["backbone"], weights, then["image_size"], then["fit"], precision)
    spec = spec.with_views(settings.get("views", []), settings.get("average_views", False))
    for name, now in spec.cache_key().items():
        if now != then[name] and name != "precision":
            hint = "pass the run's --weights FILE, or train again"
            raise InputError(f"the run was trained with {name} {then[name]}, not {now}; {hint}")
    index = checkpoint["classes"].index(checkpoint["positive_class"])
    classes = checkpoint["classes"][index], checkpoint["classes"][1 - index]
    found = (checkpoint["temperature"], {**checkpoint["thresholds"]})
    chosen = classes, index, *found, checkpoint.get("curve"), checkpoint.get("tested")
    if is_detector:
        has_map = settings["box_weight"] > 0
        network = Detector(spec, index, settings["dropout"], has_map, settings["mirror"])
        trained = DetectorSpec(**vars(spec), network=_load(network, checkpoint["head"]))
        own = {"join": checkpoint["join"], "familiar": checkpoint.get("familiar")}
        return DetectorClassifier(network.head, *chosen, spec=trained, **own)
    head = build_head(spec.width, dropout=0)
    return Classifier(_load(head, checkpoint["head"]), spec, *chosen)


def _load(module: AnyModule, weights: dict[str, Any]) -> AnyModule:
    """The module in eval mode, with its trained weights."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        hint = f"undo the edit, or train again ({one_line(error, 120)})"
        raise InputError(f"fracture/models/ builds a different network; {hint}") from error
    return module.requires_grad_(False).eval()
