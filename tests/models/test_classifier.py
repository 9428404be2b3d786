"""A trained head judges as it was trained to, and with no other backbone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from torch import nn

from fracture.cli import InputError
from fracture.evaluation import metrics
from fracture.models.backbone import FeatureSpec
from fracture.models.classifier import load_classifier
from fracture.models.head import build_head
from fracture.models.weights import find_weights
from tests.conftest import Patch

LITE0 = "efficientnet-lite0"


Checkpoint = dict[str, Any]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: Patch) -> Checkpoint:
    """Content of best.pt after a training on weights from own.pth."""
    monkeypatch.chdir(tmp_path)
    Path("own.pth").write_bytes(b"weights")
    torch.manual_seed(0)
    weights = find_weights(LITE0, "own.pth", 5)
    return {
        "recipe": FeatureSpec(LITE0, weights, 96, "letterbox", "float32").cache_key(),
        "settings": {"weights": "own.pth", "seed": 5}, "weights": weights.source,
        "classes": ["Fractured", "Non_fractured"], "positive_class": "Fractured",
        "head": build_head(1280, 0.5).state_dict(), "temperature": 2.0,
        "thresholds": {"protocol": 0.5, "youden": 0.3},
    }  # fmt: skip


@pytest.mark.parametrize("positive", ["Fractured", "Non_fractured"])
def test_a_run_decides_by_its_own_preprocessing_calibration_and_positive_class(
    checkpoint: Checkpoint, positive: str
) -> None:
    """A head that gives Fractured 0.9 whatever the image, before calibration."""
    checkpoint["positive_class"] = positive
    checkpoint["head"]["linear.weight"].zero_()
    checkpoint["head"]["linear.bias"].copy_(torch.tensor([0.9, 0.1]).log())
    classifier = load_classifier(checkpoint, "own.pth", "bfloat16")
    spec, p = classifier.spec, 0.9 if positive == "Fractured" else 0.1
    assert (spec.image_size, spec.fit, spec.precision) == (96, "letterbox", "bfloat16")
    assert classifier.p_positive(torch.ones(1, 1280)) == pytest.approx(expit(logit(p) / 2))
    assert classifier.decide(p, "protocol") == "Fractured"
    assert classifier.decide(0.3, "youden") == classifier.classes[0] == positive
    assert classifier.column == f"p_{positive.lower()}"


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("0.3", 0.3), ("sensitivity=0.75", 0.5), ("specificity=0.6", 0.5), ("specificity=1", 0.7)],
)
def test_an_operating_point_is_a_threshold_or_a_target_on_validation(
    checkpoint: Checkpoint, name: str, threshold: float
) -> None:
    p = np.array([0.9, 0.7, 0.6, 0.5, 0.4, 0.2, 0.1])
    truth = np.array([True, True, False, True, False, True, False])
    found = metrics.calibrate(
        torch.tensor(np.array([logit(p), p * 0])).T, torch.tensor(1 - truth), 0
    )
    curve = [expit(logit(found["curve"][0]) * found["temperature"]).tolist(), *found["curve"][1:]]
    classifier = load_classifier(checkpoint | {"curve": curve}, "own.pth", "float32")
    classifier.add_point(name)
    assert classifier.thresholds[name] == pytest.approx(threshold)
    older = load_classifier(checkpoint, "own.pth", "float32")
    if "=" in name:
        with pytest.raises(InputError, match=f"--at {name}: the run has no validation curve"):
            older.add_point(name)


def test_any_head_has_heat_maps_that_say_what_it_makes_of_each_place(
    checkpoint: Checkpoint,
) -> None:
    classifier, maps = load_classifier(checkpoint, "own.pth", "float32"), torch.randn(3, 1280, 4, 5)
    mlp = nn.Sequential(nn.Linear(1280, 3), nn.ReLU(), nn.Linear(3, 2))
    classifier = replace(classifier, head=mlp)
    backbone = SimpleNamespace(feature_maps=lambda images: maps[images])
    features, heat, _ = classifier.explain(backbone, torch.arange(3))
    assert torch.equal(features, maps.mean((2, 3)))
    place = classifier.log_odds(maps[1, :, 2, 3][None]).item() / 2
    assert heat[1, 2, 3] == pytest.approx(place, abs=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("recipe", {"weights": "sha256:other"}, "weights sha256:other, not sha256:"),
        ("recipe", {"preprocessing": 0}, "preprocessing 0, not 1"),
        ("recipe", {"backbone": "resnet50"}, "backbone is 'resnet50'; allowed"),
        ("head", {"linear.weight": torch.ones(2, 2304)}, "builds a different network"),
    ],
)
def test_other_weights_preprocessing_or_head_are_refused_in_one_line(
    checkpoint: Checkpoint, key: str, value: dict, said: str
) -> None:
    checkpoint[key] |= value
    with pytest.raises(InputError, match=f"^[^\n]*{said}[^\n]*$"):
        load_classifier(checkpoint, "own.pth", "float32")
