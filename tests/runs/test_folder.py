"""A run is whole: not overwritten, not shared, and the same after an interruption."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import infer
import split_dataset
import train
from fracture.config import RUNS, Config
from fracture.models.head import build_head
from fracture.runs import checkpoint
from fracture.runs.find import find_run
from fracture.runs.folder import Run, new_folder, read_history
from fracture.settings import read_config
from tests.conftest import LITE, Capture, Patch, files_in, run_expecting_error

pytestmark = pytest.mark.usefixtures("project")
FIRST = RUNS / "first"


def trained(name: str, *argv: str) -> Path:
    train.main([*LITE, "--run", name, "--epochs", "4", *argv])
    return RUNS / name


def refused(*argv: str) -> str:
    return run_expecting_error(train.main, *argv)


def content(folder: Path) -> list[str]:
    """All that a run has computed, bit for bit, whatever its name."""
    files = [torch.load(folder / name, weights_only=True) for name in ("best.pt", "last.pt")]
    texts = [json.dumps(file, default=torch.Tensor.tolist) for file in files]
    return [text.replace(folder.name, "NAME") for text in [*texts, str(read_history(folder))]]


def test_a_run_leaves_its_settings_its_history_and_two_checkpoints() -> None:
    config, history = read_config(FIRST / "config.yaml"), read_history(FIRST)
    assert find_run(None) == FIRST
    assert (config.backbone, config.run, config.epochs) == (LITE[1], "first", 20)
    assert [epoch["epoch"] for epoch in history] == [*range(1, 21)]
    top = max(history, key=lambda epoch: (epoch["val_accuracy"], -epoch["val_loss"]))
    best, last = (checkpoint.load_checkpoint(FIRST / f"{name}.pt") for name in ("best", "last"))
    assert best["best"] | {"best": True} == last["best"] | {"best": True} == top
    assert (best["epoch"], last["epoch"]) == (top["epoch"], 20)


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (train, "train_epoch", 1),  # no epoch is finished
        (train, "train_epoch", 3),
        (checkpoint, "save_checkpoint", 5),  # best.pt and last.pt are of the epoch before
        (checkpoint, "save_checkpoint", 6),  # last.pt is
    ],
)
def test_an_interrupted_run_goes_on_to_the_bits_of_an_undisturbed_one(
    monkeypatch: Patch, module: Any, name: str, call: int
) -> None:
    calls, function = [], getattr(module, name)

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(parts := f"parts-{name}-{call}")
    train.main(["--resume", parts])
    assert find_run(None) == RUNS / parts
    assert content(RUNS / parts) == content(trained(f"whole-{name}-{call}"))


def test_a_finished_run_goes_on_as_a_longer_one_and_stays_as_it_is(capsys: Capture) -> None:
    before = files_in(short := trained("short"))
    train.main(["--resume", "short", "--epochs", "7"])
    longer, whole = RUNS / "short-7-epochs", trained("seven", "--epochs", "7")
    assert "next: python infer.py --run short-7-epochs\n" in capsys.readouterr().out
    assert files_in(short) == before
    assert find_run("latest") == whole
    (last, best), (other, same) = (
        [torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt")]
        for run in (longer, whole)
    )
    assert read_history(longer) == read_history(whole)
    assert (last["settings"]["run"], last["settings"]["epochs"]) == (longer.name, 7)
    assert torch.equal(last["head"]["linear.weight"], other["head"]["linear.weight"])
    assert torch.equal(best["head"]["linear.weight"], same["head"]["linear.weight"])
    train.main(["--resume", longer.name])  # it is a run like any other


def test_a_run_is_found_by_its_name_or_its_path(project: Path, tmp_path: Path) -> None:
    assert find_run("first") == find_run("runs/first") == FIRST
    assert find_run(str(project / FIRST)) == project / FIRST
    line = run_expecting_error(infer.main, "--run", f"{tmp_path}/none")
    assert line.startswith(f"{tmp_path}/none: no such run in {project}; train one first: python")


def test_a_run_that_fails_before_its_first_epoch_leaves_nothing(project: Path) -> None:
    before = files_in(project)
    assert "the loss is " in refused(*LITE, "--run", "wild", "--lr", "1e38")
    assert files_in(project) == before


def test_no_run_overwrites_another_and_no_two_share_a_folder() -> None:
    before = files_in(FIRST)
    line = "runs/first exists and is not overwritten; pass another --run, or go on with it: "
    assert refused(*LITE, "--run", "first") == f"{line}--resume first"
    assert files_in(FIRST) == before
    with Run(train.arguments([*LITE, "--run", "busy"])[0], None, {"settings": {}}):
        assert refused("--resume", "busy") == "runs/busy: another process is training this run"
    unnamed = train.arguments([])[0]
    assert new_folder(unnamed) != new_folder(unnamed)


def test_of_equal_epochs_the_first_is_the_best() -> None:
    """With steps too small to change a weight, all are equal."""
    history = read_history(trained("still", "--lr", "1e-30"))
    assert len({(epoch["val_loss"], epoch["val_accuracy"]) for epoch in history}) == 1
    assert [epoch["best"] for epoch in history] == [True, False, False, False]
    assert checkpoint.load_checkpoint(RUNS / "still" / "best.pt")["epoch"] == 1


@pytest.mark.parametrize("name", ["lr 0.5", "epochs 10", "weights none", "split_dir other"])
def test_a_run_goes_on_with_its_own_settings_split_and_weights_only(drawn: Path, name: str) -> None:
    name, value = name.split()
    if value == "other":
        split_dataset.main(["--data_root", str(drawn), "--split_dir", "other", "--seed", "1"])
    line = refused("--resume", "first", f"--{name}", value)
    assert line.startswith(f"runs/first: {name.replace('split_dir', 'manifest_sha256')} is ")
    assert " but the run began with " in line


def test_another_optimizer_or_head_goes_on_with_no_run(monkeypatch: Patch) -> None:
    edits: dict[str, Any] = {
        "build_optimizer": lambda head, _: torch.optim.SGD(head.parameters(), lr=0.1),
        "build_head": lambda width, p: torch.nn.Sequential(torch.nn.Tanh(), build_head(width, p)),
    }
    for name, edited in edits.items():
        with monkeypatch.context() as patch:
            patch.setattr(train, name, edited)
            line = refused("--resume", "first")
            before = files_in(RUNS)
            longer = refused("--resume", "first", "--epochs", "21")
        assert files_in(RUNS) == before  # what was begun for the longer run is gone
        assert longer.endswith("undo the edit, or train anew")
        assert line.startswith("runs/first/last.pt: ")
        assert line.endswith("undo the edit, or train anew")


def test_what_changes_no_result_may_change_and_older_checkpoints_serve() -> None:
    """A finished run that is resumed stays as it is."""
    shutil.copytree(FIRST, older := RUNS / "older")
    last = torch.load(older / "last.pt", weights_only=True)
    del last["settings"]["select_by"], last["manifest_sha256"]  # as if they had come later
    torch.save(last | {"gone": 1, "settings": last["settings"] | {"gone": 1}}, older / "last.pt")
    before = files_in(older)
    values = {"data_md5": "0" * 32, "workers": "0", "wandb_mode": "disabled", "wandb_project": "x"}
    assert values.keys() == checkpoint.MUTABLE_ON_RESUME
    flags = [f"--{name}={value}" for name, value in values.items() if name not in Config.unused]
    train.main(["--resume", "older", *flags])
    assert files_in(older) == before
