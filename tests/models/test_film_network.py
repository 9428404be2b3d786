"""A classifier as one network, before it is exported: it sees and says what PyTorch's does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from fracture.config import Fit
from fracture.data.images import load_image
from fracture.evaluation.model import Model
from fracture.features.extract import Compute
from fracture.models.backbone import FeatureSpec
from fracture.models.classifier import Classifier, DetectorClassifier
from fracture.models.detector import Detector, DetectorSpec
from fracture.models.film_network import FilmNetwork, to_square
from fracture.models.head import build_head
from fracture.models.weights import find_weights

SPEC = FeatureSpec("timm/test_resnet", find_weights("", "none", 0), 64, "squash", "float32")
CHOSEN = (("Fractured", "Non_fractured"), 0, 1.5, {"protocol": 0.5})
# Tall, wide, smaller than the network's size, as large, halved, and of a pixel.
SIZES = [(454, 373), (373, 454), (40, 33), (64, 64), (128, 128), (500, 90), (3, 300), (1, 1)]


def frozen(*views: str, averaged: bool = False) -> Classifier:
    spec = SPEC.with_views(views, averaged)
    torch.manual_seed(0)
    return Classifier(build_head(spec.width, 0).eval(), spec, *CHOSEN)


def trained(has_map: bool) -> DetectorClassifier:
    network = Detector(replace(SPEC, fit="letterbox"), 0, 0.0, has_map, mirror=True)
    spec = DetectorSpec(**vars(network.spec), network=network.eval())
    own: dict[str, Any] = {"spec": spec, "join": [0.5, 0.7, -0.1], "familiar": None}
    return DetectorClassifier(network.head, *CHOSEN, **own)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", SIZES)
def test_the_grey_levels_are_those_of_pillow(fit: Fit, size: tuple[int, int]) -> None:
    film = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    seen = to_square(torch.from_numpy(film)[None], 64, fit)[0].numpy()
    np.testing.assert_array_equal(seen, load_image(film, 64, fit))


@pytest.mark.parametrize(
    "classifier",
    [
        frozen(),
        frozen("letterbox-100", "squash-100-mirror"),
        frozen("letterbox-128-mirror", averaged=True),
        trained(True),
        trained(False),
    ],
)
def test_probability_and_map_are_those_of_the_classifier(classifier: Classifier) -> None:
    films = np.random.default_rng(0).integers(0, 256, (2, 70, 51), dtype=np.uint8)
    with torch.inference_mode():
        found = FilmNetwork(classifier).eval()(torch.from_numpy(films))
    expected = Model(classifier, Compute(torch.device("cpu"), "float32", 0)).predict([*films])
    for p, heat, film in zip(*(part.numpy() for part in found), expected, strict=True):
        assert p == pytest.approx(film.p, abs=1e-6)
        assert heat == pytest.approx(expit(np.array(film.heat)), abs=1e-5)
