"""A trained run is found with its own split and weights, or refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import split_dataset
import train
from fracture.config import RUNS
from fracture.runs.trained import TrainedRun, load_trained
from tests.conftest import LITE, Capture, run_expecting_error

MODES = ("auto", "offline")
pytestmark = pytest.mark.usefixtures("project")


def load(argv: list[str]) -> TrainedRun:
    return load_trained(train.arguments(argv)[0], "float32")


def test_the_latest_run_is_the_default_and_says_what_it_is(capsys: Capture) -> None:
    run = load([])
    epoch, found = run.checkpoint["epoch"], run.metadata()
    line = f"run first, epoch {epoch}: efficientnet-lite0, imagenet weights\n"
    assert capsys.readouterr().out == line
    assert (run.folder, run.classifier.spec.backbone) == (RUNS / "first", LITE[1])
    assert (found["run"], found["backbone"], found["best_epoch"]) == ("first", LITE[1], epoch)
    assert found["manifest_sha256"] == run.checkpoint["manifest_sha256"]
    small = ("--weights", "none", "--image_size", "32", "--epochs", "1", "--run", "random")
    train.main([*LITE, *small])
    assert capsys.readouterr().out.startswith("WARNING: the backbone's weights are random")
    assert load(["--run", "random"]).metadata()["weights"] == "none"
    assert "RANDOM weights" in capsys.readouterr().out


def test_a_checkpoint_alone_suffices_and_other_weights_do_not() -> None:
    (RUNS / "alone").mkdir()
    shutil.copy(RUNS / "first" / "best.pt", best := RUNS / "alone" / "best.pt")
    run = load(["--run", "alone"])
    assert run.find_split(run.settings) == Path("data/split")
    content = torch.load(best, weights_only=True)
    content["recipe"]["weights"] = "sha256:other"
    torch.save(content, best)
    line = run_expecting_error(load, "--run", "alone")
    assert "trained with weights sha256:other, not sha256:" in line


def test_a_run_is_tested_on_its_own_split_only(drawn: Path, capsys: Capture) -> None:
    split_dataset.main(["--data_root", str(drawn), "--split_dir", "other", "--seed", "1"])
    run, other = load(["--run", "first"]), train.arguments(["--split_dir", "other"])[0]
    assert run.find_split(run.settings) == run.find_split(other) == Path("data/split")
    assert "other is not the run's split: testing on its own, data/" in capsys.readouterr().out
    moved = replace(run, settings=replace(run.settings, split_dir="gone"))
    line = run_expecting_error(lambda _: moved.find_split(other))
    assert line.startswith("other and gone are not the split of this run; make")


def test_what_was_trained_in_private_is_tested_in_private() -> None:
    """Unless the command line says otherwise. WANDB_MODE is "disabled" here."""
    run, auto, offline = load([]), *(train.arguments(["--wandb_mode", m])[0] for m in MODES)
    assert run.wandb_mode(auto) == "disabled"
    assert run.wandb_mode(offline) == replace(run, settings=offline).wandb_mode(auto) == "offline"
