"""The same numbers whatever the machine does, and none at all where they would be wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fracture.cli import InputError
from fracture.data.manifest import Split
from fracture.features.cache import FeatureCache
from fracture.features.extract import cached_features
from fracture.runs.checkpoint import load_checkpoint
from tests.conftest import LITE, REPEATS, run_script
from tests.test_features import CPU, RECIPE, WIDTH, split, split_dir
from train import validate

__all__ = ["split", "split_dir"]

TRAIN = ("train.py", *LITE, "--wandb_mode", "disabled")


def test_no_flipped_bit_of_the_cache_changes_a_number(
    split: Split, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A record with one is no record: what else is found, is what was written."""
    features, _, _ = cached_features(split, RECIPE, tmp_path, 0, CPU)
    cache, rng = FeatureCache(tmp_path, RECIPE.describe(), WIDTH), random.Random(7)
    places, content, flips = cache.find(), cache.file.read_bytes(), 200 * REPEATS
    assert len(places) == len(features) == 20
    for _ in range(flips):
        at = rng.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        cache.file.write_bytes(flipped)
        hit = at // cache.record.itemsize
        assert cache.find() == {name: place for name, place in places.items() if place != hit}
    record_property("bits flipped in caches", flips)


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 1), (0, 2)])
def test_workers_and_threads_change_no_feature(
    split: Split, tmp_path: Path, workers: int, threads: int
) -> None:
    """More than one thread may take sums in another order."""
    one, rows, _ = cached_features(split, RECIPE, tmp_path / "one", 0, CPU)
    torch.set_num_threads(threads)
    try:
        other, other_rows, _ = cached_features(split, RECIPE, tmp_path / "other", workers, CPU)
    finally:
        torch.set_num_threads(1)
    assert rows == other_rows
    if threads == 1:
        assert torch.equal(one[:], other[:])
    torch.testing.assert_close(one[:], other[:], rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_no_number_stops_with_its_step_and_is_not_saved(workplace: Path) -> None:
    done = run_script(workplace, *TRAIN, "--lr", "1e38", "--run", "wild")
    assert done.returncode == 2
    assert "train.py: the loss is " in done.stderr
    assert " at step " in done.stderr
    assert done.stderr.count("\n") == 1
    for checkpoint in (workplace / "runs" / "wild").glob("*.pt"):
        weights = load_checkpoint(checkpoint)["head"]["linear.weight"]
        assert weights.isfinite().all()
    with pytest.raises(InputError, match="validation loss is nan"):
        validate(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))


def test_of_equal_epochs_the_first_is_the_best(workplace: Path) -> None:
    """With steps too small to change a weight, all are equal."""
    done = run_script(workplace, *TRAIN, "--lr", "1e-30", "--epochs", "4", "--run", "still")
    assert done.returncode == 0, done.stderr
    history = (workplace / "runs" / "still" / "history.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in history]
    assert len({(epoch["val_loss"], epoch["val_accuracy"]) for epoch in epochs}) == 1
    assert [epoch["best"] for epoch in epochs] == [True, False, False, False]
    assert load_checkpoint(workplace / "runs" / "still" / "best.pt")["epoch"] == 1
