"""Weights & Biases without surprises: never a prompt, never a crash, never a hang."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb

from fracture.config import WandbMode
from fracture.errors import InputError, one_line


def pick_mode(mode: WandbMode) -> str:
    """Resolve "auto": WANDB_MODE if it is set, else online with a key, else offline.

    Raises:
        InputError: online was asked for and there is no key; wandb itself would prompt for one.
    """
    wanted = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
    if wanted not in ("auto", "online"):
        return wanted
    has_key = wandb.login(prompt=False, verify=False)
    if wanted == "online" and not has_key:
        raise InputError("wandb_mode is online, but there is no key; first: wandb login")
    return "online" if has_key else "offline"


def start_tracking(mode: str, project: str, folder: Path, settings: dict[str, Any]) -> wandb.Run:
    """Start a wandb run below a run's folder, and say in one line where it logs to.

    Args:
        mode: from `pick_mode`; online falls back to offline where no server answers.
        project: wandb's project.
        folder: its name becomes the wandb run's.
        settings: logged as the run's config.
    """

    def init(mode: Any) -> wandb.Run:
        # A server that hangs may cost seconds, not the run; finish() alone would wait for ever.
        limits = wandb.Settings(init_timeout=10, finish_timeout=30, console="off", silent=True)
        return wandb.init(
            project=project,
            name=folder.name,
            dir=folder,
            config=settings,
            mode=mode,
            settings=limits,
        )

    try:
        run = init(mode)
    except wandb.Error as error:
        print(f"wandb: no connection ({one_line(error)}), so offline")
        run = init("offline")
    if run.offline:
        print(f"wandb: offline; to upload the run later: wandb sync {Path(run.dir).parent}")
    elif run.url:
        print(f"wandb: {run.url}")
    return run
