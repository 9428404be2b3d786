"""Results whose truth and log-odds are known, and those of the trained project."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fracture.data.manifest import Row
from fracture.features.extract import FeatureSet
from fracture.models.backbone import FeatureSpec
from fracture.models.classifier import Classifier
from fracture.models.weights import find_weights

CLASSES = ("Fractured", "Non_fractured")
THRESHOLDS = {"protocol": 0.5, "sensitivity90": 0.2, "youden": 0.3}
SPEC = FeatureSpec("efficientnet-lite0", find_weights("", "none", 0), 224, "squash", "float32")
JUDGE = Classifier(nn.Identity(), SPEC, CLASSES, 0, 2.0, THRESHOLDS)  # its features are logits


def film_like(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and log-odds like those of FracAtlas' test split: 18 % positive, ROC-AUC 0.87.

    The seed must not be 0: `group_bootstrap` draws from that stream.
    """
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.18
    return truth, rng.normal(-2.2 + 2 * truth, 1.2)


def image_set(truth: np.ndarray, log_odds: np.ndarray, first: int = 0) -> FeatureSet:
    """Images for `JUDGE`, numbered from `first` on, each a group of its own."""
    labels = enumerate(np.where(truth, *CLASSES).tolist(), first)
    rows = [Row(f"images/{label}/{i}.jpg", label, "test", f"{i}", "", "") for i, label in labels]
    logits = torch.from_numpy(np.stack([log_odds, np.zeros(len(truth))], 1))
    return FeatureSet(logits, torch.tensor(1 - truth), rows, {})


@pytest.fixture
def results(project: Path) -> dict:
    return json.loads((project / "runs/first/test/metrics.json").read_text())


@pytest.fixture
def films(project: Path) -> list[str]:
    """The test images, below the current folder."""
    return sorted(str(film.relative_to(project)) for film in project.glob("data/split/test/*/*"))
