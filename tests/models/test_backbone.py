"""The backbone is frozen, as fast as it may be, and what the published protocol says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fracture.cli import InputError
from fracture.models.backbone import (
    EFFICIENTNETS,
    LITE,
    Backbone,
    FeatureSpec,
    architecture,
    configured_spec,
)
from fracture.models.weights import find_weights
from tests.conftest import random_network, run_expecting_error
from train import arguments

B0, B6 = "efficientnet-b0", "efficientnet-b6"


def build(name: str, weights: str = "none", seed: int = 0) -> Backbone:
    return Backbone(FeatureSpec(name, find_weights(name, weights, seed), 64, "squash", "float32"))


def images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 64, 64), dtype=torch.uint8)


def test_training_a_head_on_it_moves_nothing_of_the_backbone() -> None:
    torch.manual_seed(0)
    backbone, linear, batch = build(LITE[0], "imagenet"), nn.Linear(1280, 2), images(4)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    start, features = linear.weight.clone(), backbone(batch)
    classifier = nn.Sequential(backbone, linear).train()
    classifier(batch).logsumexp(1).sum().backward()
    torch.optim.Adam(classifier.parameters(), lr=0.1).step()
    assert not torch.equal(linear.weight, start)
    assert torch.equal(backbone(batch), features)
    assert not any(module.training for module in backbone.modules())
    assert all(not p.requires_grad and p.grad is None for p in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_fusing_and_normalising_change_no_feature_of_the_librarys_network(tmp_path: Path) -> None:
    """B0 with random weights, its BatchNorm statistics moved by a train-mode pass."""
    torch.manual_seed(0)
    batch = images(4)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    pixels = (batch.unsqueeze(1) / 255 - mean) / std
    network = random_network(B0, pixels, tmp_path / "b0.pth")
    backbone = build(B0, str(tmp_path / "b0.pth"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    expected = network.extract_features(pixels).mean((2, 3)).detach()
    assert expected.std(0).mean() > 0.01
    assert (backbone(batch) - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("size", [224, 528])
def test_strided_convolutions_are_padded_for_the_configured_size(size: int) -> None:
    """At 224 px one strided 5x5 convolution is padded (1, 2), at B6's native 528 px (2, 2)."""
    with torch.device("meta"):
        modules = architecture(B6).build(size).modules()
    found = [
        module.static_padding.padding  # type: ignore[union-attr]
        for module in modules
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride[0] == 2
    ]
    inputs = (size // 2, size // 4, size // 8, size // 16)
    totals = [k - 2 + n % 2 for k, n in zip((3, 5, 3, 5), inputs, strict=True)]
    assert found == [(total // 2, total - total // 2) * 2 for total in totals]


@pytest.mark.parametrize("name", EFFICIENTNETS + LITE)
def test_the_width_of_every_backbone_is_known_without_building_it(name: str) -> None:
    with torch.device("meta"):
        features = build(name)(torch.zeros(1, 64, 64, dtype=torch.uint8))
    assert features.shape == (1, architecture(name).width)
    assert name != B6 or features.shape == (1, 2304)


def test_an_unknown_backbone_is_told_which_are_known_and_the_nearest() -> None:
    line = run_expecting_error(lambda argv: architecture(*argv), "resnet50")
    assert line.startswith("backbone is 'resnet50'; allowed: efficientnet-b0, efficientnet-b1, ")
    flags = "--backbone", "efficientnet_b0"
    line = run_expecting_error(lambda argv: configured_spec(arguments(argv)[0], "float32"), *flags)
    assert line.startswith("backbone is 'efficientnet_b0'; did you mean 'efficientnet-b0'? allowed")


def test_random_weights_depend_on_the_seed_alone() -> None:
    one, again, other = (build(B0, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert not all(torch.equal(value, other[key]) for key, value in one.items())


def test_advprop_weights_see_pixels_from_minus_one_to_one() -> None:
    weights = replace(find_weights(B0, "none", 0), source="advprop")
    backbone = Backbone(FeatureSpec(B0, weights, 64, "squash", "float32"))
    pixels = (torch.tensor([0.0, 1.0]) - backbone.mean) / backbone.std
    assert pixels.flatten().tolist() == [-1, 1] * 3


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path) -> None:
    state = architecture(B0).build(64).state_dict()
    torch.save({"_fc.weight": torch.ones(1000, 1280), **state}, file := tmp_path / "own.pth")
    build(B0, str(file))  # _fc is the classifier, which the head replaces
    with pytest.raises(InputError, match=f"own.pth has no weights of {B6}: [^\n]*$"):
        build(B6, str(file))
    del state["_blocks.3._bn1.running_var"]
    torch.save(state, file)
    with pytest.raises(InputError, match=f"own.pth has no weights of {B0}: [^\n]*$"):
        build(B0, str(file))
