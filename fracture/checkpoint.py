"""A run's folder, runs/NAME/, and its checkpoints: saving and loading, atomic."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fracture.errors import InputError

RUNS = Path("runs")


def new_run(name: str | None, backbone: str) -> Path:
    """The folder of a run to be; without a name, one from the time and the backbone.

    Raises:
        InputError: a run of that name exists; no run overwrites another.
    """
    folder = RUNS / (name or f"{datetime.now():%Y%m%d-%H%M%S}-{backbone}")
    if folder.exists():
        raise InputError(f"{folder} exists, and no run overwrites another; pass another --run NAME")
    return folder


def find_run(name: str | None) -> Path:
    """The folder of a run, by default the latest.

    Raises:
        InputError: there is no such run.
    """
    folder = RUNS / name if name else RUNS / (RUNS / "latest").resolve().name
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
    if not {"head", "recipe", "weights", "classes", "settings", "thresholds"} <= content.keys():
        raise InputError(f"{path}: not a checkpoint of train.py")
    return content


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch saved; a pickle that would run code is refused.

    Raises:
        InputError: it is damaged, or something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever bytes may lead torch to: nine kinds have been seen
        raise InputError(f"{path}: damaged, or not written by torch.save") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a dictionary of tensors")
    return content
