"""A run's folder, runs/NAME/, and its checkpoints: saving and loading, atomic."""

from __future__ import annotations

import fcntl
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
import yaml

from fracture.config import read_settings
from fracture.errors import InputError, one_line

RUNS = Path("runs")

# Settings that may change when a run goes on: where things are, and what serves the work.
FREE = {"data_root", "data_url", "data_md5", "split_dir", "cache_dir"}
FREE |= {"workers", "wandb_mode", "wandb_project"}

# What all checkpoints hold, and best.pt besides.
KINDS: dict[str, type] = {"settings": dict, "weights": str, "recipe": dict, "classes": list}
KINDS |= {"positive_class": str, "manifest_sha256": str, "epoch": int, "head": dict, "best": dict}
DECISION: dict[str, type] = {"temperature": float, "thresholds": dict}


def check_name(name: str | None) -> None:
    """Refuse, before anything slow, what `begin_run` would refuse.

    Raises:
        InputError: a run of that name exists; no run overwrites another.
    """
    if name and (RUNS / name).exists():
        raise InputError(
            f"{RUNS / name} exists, and no run overwrites another; pass another --run NAME, or "
            f"go on with it: --resume {name}"
        )


def begin_run(name: str | None, settings: dict[str, Any]) -> Path:
    """Make a run's folder, which appears with its config.yaml in it.

    Args:
        name: of the run; None makes one from the time and the backbone.
        settings: resolved, for config.yaml.

    Raises:
        InputError: as `check_name`.
    """
    check_name(name)
    RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNS, prefix=".new-") as scratch:
        new = Path(scratch) / "run"
        new.mkdir()
        (new / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        while True:
            folder = RUNS / (name or f"{datetime.now():%Y%m%d-%H%M%S}-{settings['backbone']}")
            try:
                return new.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                check_name(name)
                time.sleep(0.5)  # two runs began within a second: the name changes with the next


def resumed(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run that was cut short had reached: its last.pt; before the first epoch its settings.

    Args:
        folder: of the run.
        identity: what checkpoints of this run hold besides what was trained.

    Raises:
        InputError: the settings, the split or the weights are others than those of the run.
    """
    if (folder / "last.pt").is_file():
        state = load_checkpoint(folder / "last.pt")
    else:
        try:
            state = {"settings": read_settings(folder / "config.yaml")}
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(f"{folder / 'config.yaml'}: {one_line(error)}") from error
    for key in (key for key in identity if key in state):
        then, now = state[key], identity[key]
        if not isinstance(now, dict):
            then, now = {key: then}, {key: now}
        for name, value in now.items():
            if name not in FREE and then.get(name) != value:
                raise InputError(
                    f"{folder}: {name} is {value}, but the run began with {then.get(name)}"
                )
    return state


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a run to this process: two of them would write the same files.

    Raises:
        InputError: another process trains it.
    """
    with (folder / "config.yaml").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is training this run") from error
        yield


def cut_history(folder: Path, epochs: int) -> None:
    """Keep the first lines of history.jsonl: what a run wrote after its last.pt comes again."""
    history = folder / "history.jsonl"
    text = history.read_text(errors="replace") if history.is_file() else ""
    replace_text(history, "".join(text.splitlines(keepends=True)[:epochs]))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The epochs' lines of history.jsonl.

    Raises:
        InputError: a line is none of train.py's.
    """
    history, needed = folder / "history.jsonl", ("epoch", "train_loss", "val_loss", "val_accuracy")
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(history.read_text(errors="replace").splitlines(), 1):
        try:
            epochs.append(json.loads(line))
            whole = all(math.isfinite(epochs[-1][name]) for name in needed)
        except (LookupError, TypeError, ValueError):
            whole = False
        if not whole:
            raise InputError(f"{history}: line {number} is no epoch's; train again")
    if not any(epoch.get("best") for epoch in epochs):
        raise InputError(f"{history}: no epoch is the best; train again")
    return epochs


def append_history(folder: Path, figures: dict[str, Any]) -> None:
    """Add an epoch's line to history.jsonl; it is on disk before last.pt says that it is."""
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Write a file that is never half there: the old one stays until the new one is whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def find_run(name: str | None) -> Path:
    """The folder of a run, by default the latest.

    Raises:
        InputError: there is no such run.
    """
    folder = RUNS / (RUNS / (name or "latest")).resolve().name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run here; train one first: python train.py")
    return folder


def set_latest(folder: Path) -> None:
    """Point runs/latest to a run, in one step, so that it always points somewhere."""
    link = RUNS / f".latest-{os.getpid()}"
    link.symlink_to(folder.name)
    link.replace(RUNS / "latest")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; the old file stays until the new one is whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of train.py.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run did not finish an epoch")
    content = load_tensors(path)
    own = {"optimizer": dict} if path.name == "last.pt" else DECISION
    wrong = [key for key, kind in (KINDS | own).items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise InputError(f"{path}: not a checkpoint of train.py: {', '.join(wrong)}")
    return content


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch saved; a pickle that would run code is refused.

    Raises:
        InputError: it is damaged, or something else.
    """
    try:
        if is_zipfile(path):  # all but torch's oldest files; torch does not look at the checksums
            with ZipFile(path) as file:
                if file.testzip():
                    raise ValueError("a checksum is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are not torch's own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes may lead torch to: nine kinds have been seen
        raise InputError(f"{path}: damaged, or not written by torch.save") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a dictionary of tensors")
    return content
