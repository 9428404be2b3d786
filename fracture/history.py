"""history.jsonl: a line for each epoch of a run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from fracture.errors import InputError
from fracture.files import named, whole


def cut_history(folder: Path, epochs: int) -> None:
    """Keep the first lines of history.jsonl: what a run wrote after its last.pt comes again."""
    history = folder / "history.jsonl"
    text = history.read_text(errors="replace") if history.is_file() else ""
    with whole(history) as new:
        new.write_text("".join(text.splitlines(keepends=True)[:epochs]))


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
            good = all(math.isfinite(epochs[-1][name]) for name in needed)
        except (LookupError, TypeError, ValueError):
            good = False
        if not good:
            raise InputError(f"{history}: line {number} is no epoch's; train again")
    if not any(epoch.get("best") for epoch in epochs):
        raise InputError(f"{history}: no epoch is the best; train again")
    return epochs


def append_history(folder: Path, figures: dict[str, Any]) -> None:
    """Add an epoch's line to history.jsonl; it is on disk before last.pt says that it is."""
    history = folder / "history.jsonl"
    with named(history), history.open("a") as file:
        file.write(json.dumps(figures) + "\n")
        file.flush()
        os.fsync(file.fileno())
