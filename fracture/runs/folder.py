"""A run: its folder runs/NAME/, made or resumed, locked, saved and logged by one object."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fracture.atomic import atomic_write, attach_path, lock
from fracture.cli import InputError, one_line
from fracture.config import RUNS, Config, shareable
from fracture.runs.checkpoint import (
    check_provenance,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
)
from fracture.runs.tracking import pick_mode, tracking
from fracture.training import selection_key


class Run:
    """A training run, used as `with Run(config, resume, provenance) as run:`.

    It is locked until the end, and logged to wandb. A run that fails before its first epoch is
    removed; one that is interrupted stays and can be resumed.

    Args:
        config: the settings.
        resume: name of an interrupted run to go on with; None makes a new one.
        provenance: from `checkpoint.provenance`.

    Attributes:
        folder: runs/NAME/.
        best: the metrics of the best epoch so far.

    Raises:
        InputError: the run exists already, or the one to resume does not, is being trained by
            another process, or began with other settings, another split or other weights.
    """

    def __init__(self, config: Config, resume: str | None, provenance: dict[str, Any]) -> None:
        self.config, self.provenance = config, provenance
        mode = pick_mode(config.wandb_mode)
        self.folder = find_run(resume) if resume else new_folder(config)
        self.stack = ExitStack()
        busy = f"{self.folder}: another process is training this run"
        self.stack.callback(lock(self.folder / ".lock", busy).release)
        self.state: dict[str, Any] = {}
        if resume:
            self.state = self._saved_state()
            cut_history(self.folder, self.state["epoch"])
            print(f"resumed after epoch {self.state['epoch']} of {config.epochs}")
        self.best: dict[str, Any] = self.state.get("best", {})
        print(f"run in {self.folder}")
        print(f"if it is interrupted: python train.py --resume {self.folder.name}")
        logged = tracking(mode, config.wandb_project, self.folder, provenance["settings"])
        self.tracker = self.stack.enter_context(logged)

    def _saved_state(self) -> dict[str, Any]:
        """The run's last.pt or, before the first epoch, its settings alone."""
        if (self.folder / "last.pt").is_file():
            state = load_checkpoint(self.folder / "last.pt")
        else:
            state = {"settings": shareable(run_settings(self.folder)), "epoch": 0}
        check_provenance(self.folder, state, self.provenance)
        return state

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        self.stack.__exit__(kind, *details)
        if kind and issubclass(kind, Exception) and not (self.folder / "last.pt").exists():
            shutil.rmtree(self.folder)
        if kind is None:
            set_latest(self.folder)

    def load_state(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the head and optimizer of a resumed run back as they were; no change in a new run."""
        if "head" in self.state:
            load_training_state(self.state, head, optimizer, self.folder)

    def epochs(self) -> Iterator[int]:
        """The epochs that are left; a header above their lines."""
        print(f"\n{'epoch':>5}{'train loss':>12}{'val loss':>10}{'val accuracy':>14}")
        yield from range(self.state.get("epoch", 0) + 1, self.config.epochs + 1)

    def save_epoch(
        self,
        metrics: dict[str, float],
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        calibration: dict[str, Any],
    ) -> None:
        """Save and log an epoch; the best one so far also becomes best.pt.

        Args:
            metrics: epoch, train_loss, val_loss and val_accuracy.
            head: as trained.
            optimizer: its state is saved as it is.
            calibration: temperature and thresholds, chosen on validation.
        """
        select_by = self.config.select_by
        is_best = not self.best or (
            selection_key(metrics, select_by) > selection_key(self.best, select_by)
        )
        self.best = metrics if is_best else self.best
        content = self.provenance | {
            "epoch": metrics["epoch"],
            "head": head.state_dict(),
            "best": self.best,
        }
        if is_best:
            save_checkpoint(self.folder / "best.pt", content | calibration)
        append_history(self.folder, {**metrics, "best": is_best})
        # Last: whatever last.pt has reached is on disk, and a resumed run goes on from there.
        save_checkpoint(self.folder / "last.pt", content | {"optimizer": optimizer.state_dict()})
        epoch, train_loss, val_loss, val_accuracy = metrics.values()
        mark = "  best" if is_best else ""
        print(f"{epoch:5}{train_loss:12.4f}{val_loss:10.4f}{val_accuracy:14.4f}{mark}")
        self.tracker.log(metrics, step=int(epoch))
        self.tracker.summarize({f"best_{name}": value for name, value in self.best.items()})


def new_folder(config: Config) -> Path:
    """Make a run's folder with its config.yaml; no run overwrites another."""
    RUNS.mkdir(exist_ok=True)
    while True:
        folder = RUNS / (config.run or f"{datetime.now():%Y%m%d-%H%M%S}-{config.backbone}")
        try:
            folder.mkdir()
            break
        except FileExistsError as error:
            if config.run:
                raise InputError(
                    f"{folder} exists, and no run overwrites another; pass another --run NAME, or "
                    f"go on with it: --resume {config.run}"
                ) from error
            time.sleep(0.5)  # two runs began within a second: the next second has another name
    with atomic_write(folder / "config.yaml") as new:
        new.write_text(yaml.safe_dump(config.as_yaml_values(), sort_keys=False))
    return folder


def find_run(name: str | None) -> Path:
    """The folder of a run, by default the latest.

    Raises:
        InputError: there is no such run.
    """
    folder = RUNS / (RUNS / ("latest" if name is None else Path(name).name)).resolve().name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run here; train one first: python train.py")
    return folder


def run_settings(folder: Path) -> dict[str, Any]:
    """A run's config.yaml, with this machine's paths, which the checkpoints lack.

    Raises:
        InputError: it is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text())
        return dict(settings) | {"split_dir": str(settings["split_dir"])}
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not the settings of a run: {one_line(error)}") from error


def set_latest(folder: Path) -> None:
    """Point runs/latest to a run, in one step, so that it always points somewhere."""
    link = RUNS / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(RUNS / "latest")


def append_history(folder: Path, metrics: dict[str, Any]) -> None:
    """Add an epoch's line to history.jsonl; it is on disk before last.pt says that it is."""
    history = folder / "history.jsonl"
    with attach_path(history), history.open("a") as file:
        file.write(json.dumps(metrics) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_history(folder: Path, epochs: int) -> None:
    """Keep the first epochs' lines: an epoch that did not reach last.pt is trained again."""
    history = folder / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)[:epochs] if history.exists() else []
    with atomic_write(history) as new:
        new.write_text("".join(lines))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """A dictionary for each finished epoch.

    Raises:
        InputError: the file is missing or damaged.
    """
    history = folder / "history.jsonl"
    try:
        return [json.loads(line) for line in history.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{history}: missing or damaged ({one_line(error)}); train again"
        ) from error
