"""wandb gets everything, or costs seconds: a real client against a server that may misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import psutil
import pytest
import torch
import yaml

from fracture.config import portable
from fracture.runs.checkpoint import load_checkpoint
from fracture.runs.tracking import SETTINGS
from tests.conftest import LITE, REPEATS, ROOT, kill, run_script
from tests.wandb_server import KEY, Fault, Server, serving

FAULTS: list[tuple[Fault, int]] = (  # what the server does, and after how many requests
    [*product(get_args(Fault), range(10))]
    if REPEATS > 1
    else [("error 500", 0), ("hang", 0), ("refuse", 0), ("die", 3), ("refuse", 4)]
)


@dataclass
class Outcome:
    """A training, and what a server holds in the end."""

    folder: Path
    status: int
    output: str  # of stdout and stderr
    seconds: float  # from the run's folder to the end: imports and features take no part in it
    server: Server

    @property
    def history(self) -> list[dict[str, float]]:
        """The epochs' figures on disk."""
        lines = (self.folder / "history.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "best"} for line in lines]

    def arrived(self) -> bool:
        """Whether the server has one run with the same epochs, and its end."""
        (run,) = self.server.runs.values()
        epochs = [row for row in run.history if "epoch" in row]  # an evaluation logs plots
        rows = [{name: row[name] for name in self.history[0]} for row in epochs]
        return rows == self.history and run.complete


def train(place: Path, name: str, server: Server, *arguments: str) -> Outcome:
    done = run_script(place, "train.py", *LITE, "--run", name, *arguments, **server.variables)
    folder = place / "runs" / name
    seconds = time.time() - (folder / "config.yaml").stat().st_mtime
    return Outcome(folder, done.returncode, done.stdout + done.stderr, seconds, server)


def sync(place: Path, server: Server, output: str) -> None:
    """Do what a script's output says should be done to upload a run."""
    _, _, command = output.partition("to upload: wandb sync ")
    *options, pattern = command.splitlines()[0].split()
    folders = [str(folder) for folder in place.glob(pattern)]
    wandb = Path(sys.executable).with_name("wandb")
    done = run_script(place, str(wandb), "sync", *options, *folders, **server.variables)
    assert done.returncode == 0, done.stderr


def disturbed(place: Path, fault: Fault, after: int) -> Outcome:
    """A training while the server fails, uploaded once it is well again."""
    with serving(fault, after) as server:
        name = f"{fault}-{after}".replace(" ", "-")
        outcome = train(place, name, server, "--wandb_mode", "online")
        server.heal()
        sync(place, server, outcome.output)
    return outcome


def undisturbed(place: Path, mode: str) -> Outcome:
    """A training and an evaluation with a healthy server; without wandb the training alone."""
    with serving() as server:
        outcome = train(place, mode, server, "--wandb_mode", mode)
        if mode == "disabled":
            return outcome
        arguments = ("--run", mode, "--wandb_mode", mode)
        done = run_script(place, "infer.py", *arguments, **server.variables)
        assert (outcome.status, done.returncode) == (0, 0), outcome.output + done.stderr
        outcome.output += done.stdout + done.stderr
    return outcome


def killed(place: Path) -> Outcome:
    """A training that is killed once it has reached some epochs, and goes on."""
    with serving() as server:
        history = place / "runs" / "killed" / "history.jsonl"
        begun = lambda: history.is_file() and history.stat().st_size > 1000  # noqa: E731
        arguments = (*LITE, "--wandb_mode", "online", "--run", "killed", "--epochs", "200")
        assert kill(place, 0, begun, "train.py", *arguments, **server.variables)
        done = run_script(
            place, "train.py", "--resume", "killed", "--wandb_mode", "online", **server.variables
        )
    return Outcome(history.parent, done.returncode, done.stdout + done.stderr, 0, server)


Jobs = dict[object, "Future[Outcome]"]


@pytest.fixture(scope="module")
def jobs(workplace: Path) -> Iterator[Jobs]:
    """All runs, some at a time: much of what they do is to wait."""
    with ThreadPoolExecutor(3) as pool:
        cases: Jobs = {case: pool.submit(disturbed, workplace, *case) for case in FAULTS}
        yield {
            **cases,
            "killed": pool.submit(killed, workplace),
            "online": pool.submit(undisturbed, workplace, "online"),
            "offline": pool.submit(undisturbed, workplace, "offline"),
            "disabled": pool.submit(undisturbed, workplace, "disabled"),
        }


@pytest.fixture
def online(jobs: Jobs) -> Outcome:
    return jobs["online"].result()


def test_an_online_run_arrives_whole(online: Outcome) -> None:
    assert len(online.history) == 20
    assert online.arrived()
    (run,) = online.server.runs.values()
    assert (run.name, run.project) == ("online", "fracatlas")
    logged = {name: held["value"] for name, held in run.config.items() if name != "_wandb"}
    settings = yaml.safe_load((online.folder / "config.yaml").read_text())
    assert logged == portable(settings) | {"tested": "online"}
    best = load_checkpoint(online.folder / "best.pt")["best"]
    assert {name: run.summary[f"best_{name}"] for name in best} == best
    assert online.server.keys == {KEY}
    said = [line for line in online.output.splitlines() if "wandb" in line]
    address = online.server.variables["WANDB_BASE_URL"]
    assert said == [f"wandb: {address}/someone/fracatlas/runs/{run.id}"] * 2


def test_an_evaluation_goes_into_the_run_of_its_training(online: Outcome) -> None:
    (run,) = online.server.runs.values()
    metrics = json.loads((online.folder / "test" / "metrics.json").read_text())
    assert run.summary["test_accuracy"] == metrics["accuracy"]["value"]
    assert run.summary["test_roc_auc"] == metrics["roc_auc"]["value"]
    plots = sorted(path.read_bytes() for path in (online.folder / "test" / "plots").glob("*.png"))
    assert plots
    assert plots == sorted(run.files[name] for name in run.files if name.endswith(".png"))


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_a_server_that_fails_costs_seconds_and_no_figure(
    jobs: Jobs, case: tuple[Fault, int]
) -> None:
    outcome, without = jobs[case].result(), jobs["disabled"].result()
    assert outcome.status == 0, outcome.output
    assert outcome.history == without.history
    one, two = (load_checkpoint(each.folder / "best.pt") for each in (outcome, without))
    assert torch.equal(one["head"]["linear.weight"], two["head"]["linear.weight"])
    assert {**one, "head": 0, "settings": 0} == {**two, "head": 0, "settings": 0}
    # On an idle machine it is 6 s. A busy one has been seen to double that: so the limits are held
    # to the letter, and that they are all the waiting there is to a bound that is not fragile.
    assert SETTINGS.init_timeout + SETTINGS.finish_timeout <= 8
    assert outcome.seconds - without.seconds < 20
    said = [line for line in outcome.output.splitlines() if "wandb" in line.lower()]
    assert len(said) == 2
    assert all(line.startswith("wandb: ") for line in said)
    reason = "user is not logged in" if case[0] == "refuse" else "the server does not answer"
    assert said[0] == f"wandb: {reason}" or said[1].startswith("wandb: not all has arrived")
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_what_a_failing_server_missed_can_be_uploaded_later(
    jobs: Jobs, case: tuple[Fault, int]
) -> None:
    assert jobs[case].result().arrived()


def test_a_client_that_is_killed_costs_a_line_and_no_epoch(workplace: Path) -> None:
    """wandb's own process, as the kernel may kill it when memory is short."""
    command = [sys.executable, str(ROOT / "train.py"), *LITE, "--wandb_mode", "offline"]
    process = subprocess.Popen(
        [*command, "--run", "alone", "--epochs", "400"], cwd=workplace, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    history = workplace / "runs" / "alone" / "history.jsonl"
    while process.poll() is None and not (history.is_file() and history.stat().st_size > 1000):
        time.sleep(0.005)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert len(history.read_text().splitlines()) == 400
    assert said.count("wandb: its process has ended") == 1
    assert "Traceback" not in said


def test_an_offline_run_can_be_uploaded_later(workplace: Path) -> None:
    outputs = [(workplace / f"{script}.txt").read_text() for script in ("train.py", "infer.py")]
    with serving() as server:
        sync(workplace, server, outputs[0])  # the pattern that each prints takes both runs
    trained, tested = sorted(server.runs.values(), key=lambda run: run.name)
    assert (trained.name, tested.name) == ("first", "first-test")
    assert "test_accuracy" in tested.summary
    del server.runs[tested.id]
    assert Outcome(workplace / "runs" / "first", 0, outputs[0], 0, server).arrived()


def test_a_killed_run_goes_on_as_the_same_wandb_run_and_arrives_whole(jobs: Jobs) -> None:
    outcome = jobs["killed"].result()
    assert outcome.status == 0, outcome.output
    assert len(outcome.history) == 200
    assert outcome.arrived()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_nothing_is_sent_when_wandb_is_off(jobs: Jobs, mode: str) -> None:
    """Though a server and a key are there."""
    assert jobs[mode].result().server.requests == []
