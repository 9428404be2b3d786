"""wandb gets every epoch, or costs seconds: it never prompts, crashes or hangs a run."""

import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

import train
from fracture.cli import InputError
from fracture.config import RUNS
from fracture.runs import tracking
from fracture.runs.folder import read_history
from tests.conftest import LITE, Capture, Patch, run_process

KEY = {"WANDB_API_KEY": "0123456789" * 4}
NO_KEY = "wandb_mode is online, but there is no key; first: wandb login"
NAMES = ("epoch", "train_loss", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    """No key and no mode, neither of this machine nor left by earlier runs in this process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    importlib.reload(tracking)
    yield
    with suppress(ConnectionError):
        wandb.teardown()


@pytest.mark.parametrize(
    ("mode", "variables", "expected"),
    [
        ("auto", {}, "offline"), ("auto", KEY, "online"), ("disabled", KEY, "disabled"),
        ("auto", KEY | {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", KEY | {"WANDB_MODE": "online"}, "offline"),
        ("online", KEY | {"WANDB_MODE": "offline"}, "online"),
        ("online", KEY, "online"), ("online", {}, NO_KEY),
        ("auto", {"WANDB_MODE": "online"}, NO_KEY),
        ("auto", {"WANDB_MODE": "dryrun"}, "WANDB_MODE is 'dryrun'; allowed: online, offline"),
        ("auto", {"WANDB_API_KEY": "short"}, "wandb: WANDB_API_KEY invalid"),
    ],
)  # fmt: skip
def test_the_mode_is_the_settings_then_the_variables_then_what_a_key_allows(
    monkeypatch: Patch, mode: Any, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        found = tracking.pick_mode(mode)
    except InputError as error:
        found = str(error)
    assert found.startswith(expected)
    assert "\n" not in found


def test_a_run_leaves_nothing_to_the_next(tmp_path: Path, monkeypatch: Patch) -> None:
    """wandb.init writes into the Settings that it is given."""
    with tracking.tracking("disabled", "some", tmp_path, {}):
        monkeypatch.setenv("WANDB_API_KEY", KEY["WANDB_API_KEY"])
    wandb.teardown()
    assert tracking.pick_mode("auto") == "online"


def test_an_offline_run_holds_every_epoch_and_no_path_of_the_machine(project: Path) -> None:
    """Read back by wandb's own reader."""
    train.main([*LITE, "--run", "offline"])
    (folder,) = (RUNS / "offline" / "wandb").glob("offline-run-*")
    reader = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    read = subprocess.run([*reader, str(folder)], capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in read.splitlines()]
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    histories = logged, read_history(RUNS / "offline")
    one, two = ([[epoch[name] for name in NAMES] for epoch in history] for history in histories)
    assert len(one) == 20
    assert one == two
    assert str(project) not in read


def test_a_training_survives_the_death_of_wandbs_process(
    project: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    validate, killed = train.validate, list[psutil.Process]()

    def deadly(*arguments: Any) -> Any:
        for child in psutil.Process().children(recursive=True):
            child.kill()
            killed.append(child)
        return validate(*arguments)

    monkeypatch.setattr(train, "validate", deadly)
    train.main([*LITE, "--run", "alone", "--wandb_mode", "offline"])
    assert killed
    assert read_history(RUNS / "alone") == read_history(project / "runs" / "first")
    assert capsys.readouterr().out.count("wandb: not everything was uploaded") == 1


def test_a_server_that_never_answers_costs_seconds_and_no_epoch(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        variables = KEY | {"WANDB_BASE_URL": address}
        done = run_process(project, "train.py", *LITE, "--run", "hanging", **variables)
    assert (done.returncode, done.stderr.count("wandb")) == (0, 0), done.stderr
    assert read_history(RUNS / "hanging") == read_history(RUNS / "first")
    said = [line for line in done.stdout.splitlines() if line.startswith("wandb: ")]
    assert len(said) == 2
    assert said[0].endswith("; logging offline")
    assert said[1].startswith("wandb: offline; to upload: ")
