"""The network of finetune.py: all of it can learn, and its map is fine where it can be."""

import pytest
import torch

from fracture.models.backbone import FeatureSpec
from fracture.models.detector import (
    Detector,
    image_scores,
    join_scores,
    pooled_maps,
    predict_scores,
)
from fracture.models.weights import find_weights

WEIGHTS = find_weights("", "none", 0)


def detector(name: str, has_map: bool = True, mirror: bool = False) -> Detector:
    spec = FeatureSpec(name, WEIGHTS, 96, "squash", "float32")
    return Detector(spec, 1, 0.0, has_map, mirror)


@pytest.mark.parametrize("name", ["efficientnet-b0", "efficientnet-lite1"])
def test_every_weight_learns_and_the_map_has_cells_of_16_pixels(name: str) -> None:
    network = detector(name)
    outputs = network.train()(torch.randint(0, 255, (2, 96, 96), dtype=torch.uint8))
    assert network.map_shape == (6, 6)
    assert outputs.shape == (2, 2 + 36)
    outputs.square().sum().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.abs().sum() > 0, key


def test_without_boxes_the_map_is_what_the_head_says_of_each_cell() -> None:
    network = detector("efficientnet-b0", has_map=False).eval()
    outputs = network(torch.randint(0, 255, (2, 96, 96), dtype=torch.uint8)).detach()
    assert network.map_shape == (3, 3)
    torch.testing.assert_close(outputs[:, 2:].mean(1), outputs[:, 1] - outputs[:, 0])


def test_the_score_joins_the_head_and_the_hottest_cell() -> None:
    outputs = torch.tensor([[1.0, 3.0, -5.0, 0.5], [2.0, 0.0, -1.0, -7.0]])
    scores = image_scores(outputs, positive=1)
    assert scores.tolist() == [[2, 0.5], [-2, -1]]
    logits = join_scores(scores, [0.5, 2, -1], positive=1)
    torch.testing.assert_close(logits, torch.tensor([[0, 1.0], [0, -4]], dtype=torch.float64))


def test_pooled_maps_are_those_of_the_scores_without_the_mirror_image() -> None:
    network = detector("efficientnet-b0", mirror=True)
    images = torch.randint(0, 255, (3, 96, 96), dtype=torch.uint8)
    assert torch.equal(pooled_maps(network, images), predict_scores(network, images)[1])
