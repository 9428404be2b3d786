"""Checkpoints: tensors and plain values, written atomically, compared before a run goes on."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from fracture.atomic import atomic_write
from fracture.cli import InputError
from fracture.config import Config, shareable
from fracture.models.backbone import FeatureSpec
from fracture.models.weights import load_tensors

if TYPE_CHECKING:  # torchvision takes a second to import, and a single film does not need it
    from fracture.data.split_folder import SplitFolder

# Settings that may change when a run is resumed: they do not change its results.
MUTABLE_ON_RESUME = {"data_md5", "workers", "wandb_mode", "wandb_project"}
Stateful = nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler
PACKED = "model.safetensors"  # a best.pt to pass on


def provenance(config: Config, spec: FeatureSpec, folder: "SplitFolder") -> dict[str, Any]:
    """What a run's results depend on, in plain values; all its checkpoints hold it."""
    return {
        "script": config.script,
        "settings": shareable(asdict(config)),
        "weights": spec.weights.source,
        "recipe": spec.cache_key(),
        "classes": folder.classes,
        "positive_class": config.positive_class,
        "manifest_sha256": folder.manifest_sha256,
    }


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; the old file stays until the new one is complete."""
    buffer = io.BytesIO()  # torch's own error does not say that the disk is full
    torch.save(content, buffer)
    with atomic_write(path) as new:
        new.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        InputError: there is no such file, or it is damaged, or another program's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run did not finish an epoch")
    return _of_a_run(load_tensors(path), path)


def load_best(run: Path) -> dict[str, Any]:
    """A run's best epoch, from its best.pt or from what pack.py made of it.

    Raises:
        InputError: there is neither, or it is damaged, or another program's.
    """
    file = run / PACKED
    if not file.is_file():
        return load_checkpoint(run / "best.pt")
    head = load_tensors(file)
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata() or {}
    return _of_a_run(json.loads(metadata.get("checkpoint", "{}")) | {"head": head}, file)


def _of_a_run(content: dict[str, Any], file: Path) -> dict[str, Any]:
    if "recipe" not in content:
        raise InputError(f"{file}: not a model of this program")
    return content


def check_provenance(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run under other conditions.

    Args:
        folder: of the run.
        then: the run's checkpoint, or only its settings if it has none yet.
        now: the provenance of this process.

    Raises:
        InputError: settings, split or weights differ.
    """
    now = {key: now[key] for key in now.keys() & then.keys()}
    before, current = (flat | flat["settings"] | flat.get("recipe", {}) for flat in (then, now))
    for name in (current.keys() & before.keys()) - MUTABLE_ON_RESUME - {"settings", "recipe"}:
        if before[name] != current[name]:
            begun = f"but the run began with {before[name]}"
            raise InputError(f"{folder}: {name} is {current[name]}, {begun}")
