"""Checkpoints are plain values and tensors, and say nothing about the machine."""

import hashlib
from pathlib import Path

import torch

from fracture.models.weights import find_weights
from fracture.runs.checkpoint import load_checkpoint
from tests.conftest import LITE, run_expecting_error


def test_a_checkpoint_holds_what_results_depend_on(project: Path) -> None:
    weights, manifest = find_weights(LITE[1], "imagenet", 42), project / "data/split/manifest.csv"
    for name in ("best.pt", "last.pt"):
        found = torch.load(project / "runs" / "first" / name, weights_only=True)
        assert found["recipe"]["weights"] == weights.identity
        assert found["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert not found["settings"].keys() & {"data_root", "split_dir", "cache_dir"}


def test_without_an_epoch_there_is_no_checkpoint(tmp_path: Path) -> None:
    line = run_expecting_error(lambda _: load_checkpoint(tmp_path / "last.pt"))
    assert "last.pt: no such file; the run did not" in line
