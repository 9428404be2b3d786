"""A run: its folder runs/NAME/, made or resumed, locked, saved and logged by one object."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from fracture.atomic import atomic_write, lock
from fracture.cli import InputError, one_line
from fracture.config import RUNS, Config, shareable
from fracture.distributed import RANK
from fracture.runs import checkpoint
from fracture.runs.find import find_run, set_latest
from fracture.runs.tracking import pick_mode, tracking
from fracture.settings import read_config
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
        self.state: dict[str, Any]
        if RANK > 0:  # torchrun's other processes train along, and write nothing
            self.stack, self.history = ExitStack(), []
            self.folder = find_run(resume) if resume else RUNS
            self.state = self._saved_state() if resume else {"epoch": 0}
            return
        mode = pick_mode(config.wandb_mode)
        self.folder = find_run(resume) if resume else new_folder(config)
        self.is_new, done = not resume, len(read_history(self.folder))
        if done == read_config(self.folder / "config.yaml").epochs < config.epochs:
            self._become_longer()
        busy = f"{self.folder}: another process is training this run"
        with ExitStack() as stack:  # releases the lock if the run is refused
            stack.callback(lock(self.folder / ".lock", busy).release)
            self.state = self._saved_state() if resume else {"epoch": 0}
            self.history = read_history(self.folder)[: self.state["epoch"]]
            self.best: dict[str, Any] = self.state.get("best", {})
            if resume:
                print(f"resumed after epoch {self.state['epoch']} of {config.epochs}")
            print(f"run in {self.folder}")
            print(f"if it is interrupted: python {config.script} --resume {self.folder.name}")
            settings = self.provenance["settings"]
            logged = tracking(mode, config.wandb_project, self.folder, settings)
            self.wandb = stack.enter_context(logged)
            self.stack = stack.pop_all()

    def _saved_state(self) -> dict[str, Any]:
        """The run's last.pt or, before the first epoch, its settings alone."""
        if (self.folder / "last.pt").is_file():
            state = checkpoint.load_checkpoint(self.folder / "last.pt")
        else:
            settings = shareable(asdict(read_config(self.folder / "config.yaml")))
            state = {"settings": settings, "epoch": 0}
        then, now = state["settings"], self.config
        if state["epoch"] == then.get("epochs") < now.epochs:  # it goes on as a longer run
            then |= {"epochs": now.epochs, "run": now.run}
        checkpoint.check_provenance(self.folder, state, self.provenance)
        return state

    def _become_longer(self) -> None:
        """Begin where a finished run ended, as a new one: no run changes after its end."""
        self._saved_state()  # refuses other settings before a folder is made
        finished, epochs = self.folder, self.config.epochs
        self.config = replace(self.config, run=f"{finished.name}-{epochs}-epochs")
        self.provenance["settings"] = shareable(asdict(self.config))
        self.folder, self.is_new = new_folder(self.config), True
        for name in ("history.jsonl", "best.pt", "last.pt"):
            with atomic_write(self.folder / name) as new:
                shutil.copy2(finished / name, new)
        print(f"{finished} is finished and stays as it is")

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        self.stack.__exit__(kind, *details)
        if RANK > 0:
            return
        done = len(self.history) - self.state["epoch"]  # epochs of this process
        if kind is None:
            set_latest(self.folder)
            if self.best:
                values = [f"{_title(name)} {value:.4f}" for name, value in self.best.items()]
                print(f"\nbest epoch {self.best['epoch']}: {', '.join(values[2:])}")
                least = min(epoch["val_loss"] for epoch in self.history)
                if self.history[-1]["val_loss"] > 2 * least:
                    print(f"validation loss doubled after its minimum, {least:.4f}: lower --lr?")
            print(f"next: python infer.py --run {self.folder.name}")
        elif issubclass(kind, Exception) and self.is_new and done == 0:
            shutil.rmtree(self.folder)
        elif issubclass(kind, KeyboardInterrupt):
            again = f"python {self.config.script} --resume {self.folder.name}"
            print(f"\nwhat is done is kept; to go on: {again}")

    def load_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **others: checkpoint.Stateful
    ) -> None:
        """Put everything of a resumed run back as it was; no change in a new run.

        Args:
            model: what best.pt is to hold, as its `head`.
            optimizer: of any kind.
            others: whatever else an epoch changes, by name.

        Raises:
            InputError: the run was trained with another head or optimizer.
        """
        if self.state["epoch"] == 0:
            return
        saved, options = self.state["optimizer"], [g.keys() for g in optimizer.param_groups]
        parts = {"head": model, "optimizer": optimizer, **others}
        try:
            if [group.keys() for group in saved["param_groups"]] != options:
                raise ValueError("another optimizer has written it")
            for name, part in parts.items():
                part.load_state_dict(self.state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            file, reason = self.folder / "last.pt", one_line(error, 120)
            raise InputError(f"{file}: {reason}; undo the edit, or train anew") from error

    def epochs(self) -> Iterator[int]:
        """The epochs that are left."""
        yield from range(self.state["epoch"] + 1, self.config.epochs + 1)

    def save_epoch(
        self,
        metrics: dict[str, float],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        calibration: dict[str, Any],
        **others: checkpoint.Stateful,
    ) -> None:
        """Save and log an epoch; the best one so far also becomes best.pt.

        Args:
            metrics: epoch, train_loss, and those of `validate`.
            model: as trained: the head, or the whole network.
            optimizer: its state is saved as it is.
            calibration: temperature and thresholds, chosen on validation.
            others: as for `load_state`.
        """
        if RANK > 0:
            return
        keys = [selection_key(m, self.config.select_by) for m in (metrics, self.best) if m]
        is_best = len(keys) == 1 or keys[0] > keys[1]
        self.best = metrics if is_best else self.best
        self.history.append({**metrics, "best": is_best})
        content = {"epoch": metrics["epoch"], "head": model.state_dict(), "best": self.best}
        content |= self.provenance
        if is_best:
            checkpoint.save_checkpoint(self.folder / "best.pt", content | calibration)
        with atomic_write(self.folder / "history.jsonl") as new:
            new.write_text("".join(json.dumps(epoch) + "\n" for epoch in self.history))
        # Last: whatever last.pt has reached is on disk, and a resumed run goes on from there.
        others["optimizer"] = optimizer
        content |= {name: part.state_dict() for name, part in others.items()}
        checkpoint.save_checkpoint(self.folder / "last.pt", content)
        self._print_epoch(metrics, is_best)
        with suppress(ConnectionError):  # wandb's own process has died; `tracking` says so
            self.wandb.log(metrics, step=int(metrics["epoch"]))
            self.wandb.summary.update({f"best_{name}": value for name, value in self.best.items()})

    def _print_epoch(self, metrics: dict[str, float], is_best: bool) -> None:
        """A line of the table of epochs; the first line of this process gets a header."""
        titles = [_title(name) for name in metrics if name != "epoch"]
        if len(self.history) == self.state["epoch"] + 1:
            print("\nepoch" + "".join(f"  {title}" for title in titles))
        epoch, *values = metrics.values()
        cells = [f"{v:{len(title) + 2}.4f}" for v, title in zip(values, titles, strict=True)]
        print(f"{epoch:5}{''.join(cells)}{'  best' if is_best else ''}")


def _title(name: str) -> str:
    return name.replace("roc_auc", "ROC-AUC").replace("_", " ")


def new_folder(config: Config) -> Path:
    """Make a run's folder with its config.yaml; no run overwrites another."""
    own = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(config.backbone).name}"
    folder = RUNS / (config.run or own)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if not config.run:  # two runs began within a second: the next second has another name
            time.sleep(0.5)
            return new_folder(config)
        hint = f"pass another --run, or go on with it: --resume {config.run}"
        raise InputError(f"{folder} exists and is not overwritten; {hint}") from error
    with atomic_write(folder / "config.yaml") as new:
        new.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    return folder


def read_history(folder: Path) -> list[dict[str, Any]]:
    """A dictionary for each finished epoch."""
    history = folder / "history.jsonl"
    lines = history.read_text().splitlines() if history.exists() else []
    return [json.loads(line) for line in lines]
