"""Which run is meant: by its name, by its path, or the latest."""

import os
from pathlib import Path

from fracture.cli import InputError
from fracture.config import BOXED, RUNS, run_folder


def find_run(name: str | None) -> Path:
    """The folder of a run, from its name or path; by default the latest.

    Without any run it is the bundled model.

    Raises:
        InputError: there is no such run.
    """
    if name is None and not (RUNS / "latest").exists():
        print(f"no run in {RUNS}/ yet: using the bundled model; research use only")
        return BOXED
    latest = name in (None, "latest")
    folder = RUNS / (RUNS / "latest").resolve().name if latest else run_folder(str(name))
    if not folder.is_dir():
        hint = "train one first: python train.py, or name one with --run NAME_OR_PATH"
        raise InputError(f"{folder}: no such run in {Path.cwd()}; {hint}")
    return folder


def set_latest(folder: Path) -> None:
    """Point runs/latest to a run, in one step, so that it always points somewhere."""
    link = RUNS / f".latest-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(RUNS / "latest")
