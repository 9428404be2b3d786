"""A run's folder, runs/NAME/, and its checkpoints: saving and loading, atomic."""

from __future__ import annotations

import io
import os
import tempfile
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, is_zipfile

import torch
import yaml

from fracture.atomic import lock, named, whole
from fracture.cli import InputError, one_line
from fracture.config import PLACES, portable, read_settings

RUNS = Path("runs")

# Settings that may change when a run goes on: they serve the work.
FREE = {"data_md5", "workers", "wandb_mode", "wandb_project"}

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
    with named(RUNS), tempfile.TemporaryDirectory(dir=RUNS, prefix=".new-") as scratch:
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


def run_settings(folder: Path) -> dict[str, Any]:
    """A run's config.yaml: checkpoints hold the same but for the places on this machine.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / "config.yaml"
    try:
        settings = read_settings(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: {one_line(error)}") from error
    if not all(isinstance(settings.get(name), str) for name in (*PLACES, "weights")):
        raise InputError(f"{path}: not the settings of a run")
    return settings


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
        state = {"settings": portable(run_settings(folder))}
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


def take_up(
    state: dict[str, Any], head: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Put what a run's last.pt holds into a head and its optimizer.

    Raises:
        InputError: it is of another head.
    """
    try:
        if not {"val_accuracy", "val_loss"} <= state["best"].keys():
            raise ValueError("it has no best epoch")
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in optimizer.state.items():
            if {moments[name].shape for name in ("exp_avg", "exp_avg_sq")} != {parameter.shape}:
                raise ValueError("its optimizer is of another head")
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'last.pt'}: {one_line(error)}") from error


def hold(folder: Path) -> IO:
    """Keep a run to this process until the result is closed: two would write the same files.

    Raises:
        InputError: another process trains it.
    """
    file = (folder / "config.yaml").open("r+")
    lock(file, f"{folder}: another process is training this run")
    return file


def find_run(name: str | None) -> Path:
    """The folder of a run, by default the latest.

    Raises:
        InputError: there is no such run.
    """
    folder = RUNS / (RUNS / ("latest" if name is None else Path(name).name)).resolve().name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run here; train one first: python train.py")
    return folder


def set_latest(folder: Path) -> None:
    """Point runs/latest to a run, in one step, so that it always points somewhere."""
    link = RUNS / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(RUNS / "latest")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; the old file stays until the new one is whole."""
    buffer = io.BytesIO()  # torch's own error of a full disk would not say that it is one
    torch.save(content, buffer)
    with whole(path) as new:
        new.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        InputError: there is no such file, or it is not a checkpoint of train.py.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run did not finish an epoch")
    try:
        content = load_tensors(path)
    except InputError as error:
        again = f"remove last.pt, and python train.py --resume {path.parent.name} makes it again"
        raise InputError(f"{error}; {again}") from error
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
