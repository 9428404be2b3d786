"""Any model of timm is a backbone by its name; all weights here are RANDOM."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import finetune
import infer
import train
from fracture.models.backbone import Backbone, FeatureSpec, architecture
from fracture.models.weights import find_weights
from tests.conftest import Capture, Patch, run_expecting_error

CNN, VIT = "timm/test_resnet", "timm/test_vit"
OTHERS = [("timm/swin_tiny_patch4_window7_224", 2, 0.485), ("timm/test_efficientnet", 2, 0.485)]


def build(name: str, weights: str = "none") -> Backbone:
    return Backbone(FeatureSpec(name, find_weights(name, weights, 0), 64, "squash", "float32"))


@pytest.mark.parametrize(("name", "side", "mean"), [(CNN, 2, 0.5), (VIT, 4, 0.5), *OTHERS])
def test_the_mean_of_the_maps_is_the_features(name: str, side: int, mean: float) -> None:
    backbone, images = build(name), torch.randint(256, (2, 64, 64), dtype=torch.uint8)
    maps = backbone.feature_maps(images)
    assert maps.shape == (2, architecture(name).width, side, side)
    assert torch.equal(backbone(images), maps.mean((2, 3)))
    assert backbone.mean[0].item() == pytest.approx(mean)
    pixels = (images[:, None] / 255 - backbone.mean) / backbone.std
    raw = backbone.network.forward_features(pixels)  # type: ignore[operator]
    if name == VIT:  # a class token, then 4 rows of 4 places
        assert torch.allclose(maps[0, :, 1, 2], raw[0, 1 + 4 + 2], atol=1e-5)


def test_a_file_for_another_image_size_fits_and_one_of_another_network_does_not(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """As on the hub: with a classifier, and embeddings of 10 x 10 places."""
    state, key = timm.create_model("test_vit").state_dict(), "blocks.3.mlp.fc1.weight"
    save_file(state, file := tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(file))
    own, hub = (find_weights(VIT, weights, 0) for weights in (str(file), "imagenet"))
    assert (hub.source, hub.identity) == ("r160_in1k", own.identity)
    assert torch.equal(build(VIT, "imagenet").network.state_dict()[key], state[key])
    line = run_expecting_error(lambda argv: build(*argv), CNN, str(file))
    assert line.startswith(f"{file} has no weights of {CNN}: ")


@pytest.mark.usefixtures("project")
def test_a_frozen_cnn_and_a_trained_transformer_are_tested(capsys: Capture) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), "own.pth")
    train.main(["--backbone", CNN, "--weights", "own.pth", "--epochs", "2"])
    infer.main([])
    told = capsys.readouterr().out
    assert told.startswith(f"{CNN} was pretrained at 160 pixels; --image_size 160 uses that\n")
    assert f": {CNN}, file own.pth weights\n" in told
    finetune.main(["--backbone", VIT, "--weights", "none", "--image_size", "64", "--epochs", "1"])
    infer.main([])
    assert f", epoch 1: {VIT}, RANDOM weights\n" in capsys.readouterr().out


def test_what_cannot_be_is_said_in_one_line(monkeypatch: Patch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: 1 / 0)
    for name, weights, said in (
        ("timm/resnet5O", "imagenet", "nearest: timm/resnet50, "),
        (CNN, "imagenet", "use none, or a file, as from timm/test_resnet.r160_in1k"),
        ("timm/halonet26t", "none", "timm/halonet26t has no maps of 64 pixels: "),
    ):
        assert said in run_expecting_error(lambda argv: build(*argv), name, weights)
    monkeypatch.setitem(sys.modules, "timm", None)
    line = run_expecting_error(lambda argv: build(*argv), "timm/resnet18", "imagenet")
    assert line == "backbone timm/resnet18 needs the package timm: pip install timm"
