"""history.jsonl: a line for each epoch of a run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from fracture.atomic import named, whole
from fracture.cli import InputError


def cut_history(folder: Path, epochs: int) -> None:
    """Keep the first epochs' lines: what a run wrote after its last.pt comes again.

    Raises:
        InputError: they are not all there.
    """
    history = folder / "history.jsonl"
    text = history.read_text(errors="replace") if history.is_file() else ""
    lines = text.splitlines(keepends=True)[:epochs]
    if len(lines) < epochs or not all(_epoch(line) for line in lines):
        raise InputError(
            f"{history}: lacks some of the {epochs} epochs that last.pt has reached; remove "
            "last.pt, and they begin anew"
        )
    with whole(history) as new:
        new.write_text("".join(lines))


def append_history(folder: Path, figures: dict[str, Any]) -> None:
    """Add an epoch's line to history.jsonl; it is on disk before last.pt says that it is."""
    history = folder / "history.jsonl"
    with named(history), history.open("a") as file:
        file.write(json.dumps(figures) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of the epochs that a run has finished.

    Raises:
        InputError: a line is none of train.py's.
    """
    history = folder / "history.jsonl"
    epochs = []
    for number, line in enumerate(history.read_text(errors="replace").splitlines(), 1):
        if not (epoch := _epoch(line)):
            raise InputError(f"{history}: line {number} is no epoch's; train again")
        epochs.append(epoch)
    return epochs


def _epoch(line: str) -> dict[str, Any] | None:
    try:
        epoch = json.loads(line)
        figures = [epoch[name] for name in ("epoch", "train_loss", "val_loss", "val_accuracy")]
        return epoch if all(map(math.isfinite, figures)) else None
    except (LookupError, TypeError, ValueError):
        return None
