"""wandb gets everything, or costs seconds: a real client against a server that may misbehave."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from fracture.checkpoint import load_checkpoint
from tests.conftest import LITE, run_script
from tests.wandb_server import KEY, Fault, Server, serving

SOAK = int(os.environ.get("KILLS", 1)) > 1
FAULTS: list[tuple[Fault, int]] = (  # what the server does, and after how many requests
    [*product(get_args(Fault), range(10))]
    if SOAK
    else [("error 500", 0), ("hang", 0), ("refuse", 0), ("hang", 1), ("die", 3), ("refuse", 4)]
)
AT_MOST = 10  # seconds that wandb may cost a run


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


@pytest.fixture(scope="module")
def place(workplace: Path) -> Path:
    """A folder with a split whose features are in the cache."""
    return workplace


@pytest.fixture(scope="module")
def outcomes(place: Path) -> dict[object, Outcome]:
    """A training for each fault of the server, uploaded once it is healthy, and one without wandb.

    Some at a time: most of what they do is to wait.
    """

    def disturbed(case: tuple[Fault, int]) -> Outcome:
        fault, after = case
        with serving(fault, after) as server:
            name = f"{fault}-{after}".replace(" ", "-")
            outcome = train(place, name, server, "--wandb_mode", "online")
            server.heal()
            sync(place, server, outcome.output)
        return outcome

    def undisturbed() -> Outcome:
        with serving() as server:
            return train(place, "undisturbed", server, "--wandb_mode", "disabled")

    with ThreadPoolExecutor(3) as pool:
        without = pool.submit(undisturbed)
        return dict(zip(FAULTS, pool.map(disturbed, FAULTS), strict=True)) | {
            None: without.result()
        }


@pytest.fixture(scope="module")
def online(place: Path) -> Outcome:
    """A training and an evaluation with a healthy server."""
    with serving() as server:
        outcome = train(place, "online", server, "--wandb_mode", "online")
        tested = run_script(
            place, "infer.py", "--run", "online", "--wandb_mode", "online", **server.variables
        )
        assert (outcome.status, tested.returncode) == (0, 0), outcome.output + tested.stderr
        outcome.output += tested.stdout + tested.stderr
    return outcome


def test_an_online_run_arrives_whole(online: Outcome) -> None:
    assert len(online.history) == 20
    assert online.arrived()
    (run,) = online.server.runs.values()
    assert (run.name, run.project) == ("online", "fracatlas")
    logged = {name: held["value"] for name, held in run.config.items() if name != "_wandb"}
    settings = yaml.safe_load((online.folder / "config.yaml").read_text())
    assert logged == settings | {"tested": "online"}
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
    outcomes: dict[object, Outcome], case: tuple[Fault, int]
) -> None:
    outcome, undisturbed = outcomes[case], outcomes[None]
    assert outcome.status == 0, outcome.output
    assert outcome.history == undisturbed.history
    one, two = (load_checkpoint(each.folder / "best.pt") for each in (outcome, undisturbed))
    assert torch.equal(one["head"]["linear.weight"], two["head"]["linear.weight"])
    assert {**one, "head": 0, "settings": 0} == {**two, "head": 0, "settings": 0}
    # Both ran in the same minute, so that a busy machine slows both. Without limits it is more
    # than 30 s, or for ever.
    assert outcome.seconds - undisturbed.seconds < AT_MOST
    said = [line for line in outcome.output.splitlines() if "wandb" in line.lower()]
    assert len(said) == 2
    assert all(line.startswith("wandb: ") for line in said)
    reason = "user is not logged in" if case[0] == "refuse" else "the server does not answer"
    assert said[0] == f"wandb: {reason}" or said[1].startswith("wandb: not all has arrived")
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize("case", FAULTS, ids=str)
def test_what_a_failing_server_missed_can_be_uploaded_later(
    outcomes: dict[object, Outcome], case: tuple[Fault, int]
) -> None:
    assert outcomes[case].arrived()


def test_an_offline_run_can_be_uploaded_later(place: Path) -> None:
    outputs = [(place / f"{script}.txt").read_text() for script in ("train.py", "infer.py")]
    with serving() as server:
        sync(place, server, outputs[0])  # the pattern that each prints takes both runs
    trained, tested = sorted(server.runs.values(), key=lambda run: run.name)
    assert (trained.name, tested.name) == ("first", "first-test")
    assert "test_accuracy" in tested.summary
    del server.runs[tested.id]
    assert Outcome(place / "runs" / "first", 0, outputs[0], 0, server).arrived()
