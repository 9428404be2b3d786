"""Weights & Biases, which must never stop a run: no prompt, no crash, no hang."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import wandb

from fracture.cli import InputError, one_line
from fracture.config import WandbMode
from fracture.runs.history import read_history

# A server that hangs costs both limits at worst, 10 s with all else; wandb would wait for ever.
SETTINGS = wandb.Settings(
    init_timeout=4, finish_timeout=4, finish_timeout_raises=True, console="off", silent=True
)
# What wandb reports on itself goes there too, waits up to 20 s more, and is sent even offline.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def pick_mode(mode: WandbMode) -> str:
    """Resolve "auto": WANDB_MODE if it is set, else online with a key, else offline.

    Raises:
        InputError: online was asked for and there is no key (wandb itself would prompt for one),
            the key cannot be one, or WANDB_MODE is no mode.
    """
    wanted = (os.environ.get("WANDB_MODE") or mode) if mode == "auto" else mode
    try:
        wandb.setup(SETTINGS)  # also lest the login ask the server who we are, and print it
    except ValueError as error:
        said = one_line(error).partition(" [type=")[0]
        raise InputError(f"wandb: a WANDB_ variable is wrong: {said}") from error
    if wanted not in get_args(WandbMode):
        raise InputError(f"WANDB_MODE is {wanted!r}; allowed: online, offline, disabled")
    if wanted in ("offline", "disabled"):
        return wanted
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise InputError(f"wandb: {one_line(error)} (or pass --wandb_mode offline)") from error
    if wanted == "online" and not has_key:
        raise InputError("wandb_mode is online, but there is no key; first: wandb login")
    return "online" if has_key else "offline"


class Tracker:
    """A wandb run whose own process may die, which costs what was not logged yet, and a line."""

    def __init__(self, run: wandb.Run) -> None:
        self.run, self.alive = run, True

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        self._send(lambda: self.run.log(row, step))

    def summarise(self, figures: dict[str, Any]) -> None:
        self._send(lambda: self.run.summary.update(figures))

    def _send(self, send: Callable[[], object]) -> None:
        try:
            if self.alive:
                send()
        except ConnectionError:
            self.alive = False
            print("wandb: its process has ended; this run goes on without it")
            sys.unraisablehook = lambda _: None  # at the exit wandb prints a traceback of the same


@contextmanager
def tracking(
    mode: str, project: str, folder: Path, settings: dict[str, Any], job: str = "train"
) -> Iterator[Tracker]:
    """A wandb run below a run's folder, finished at the end; says in one line where it logs to.

    Args:
        mode: from `pick_mode`; online falls back to offline where no server answers.
        project: wandb's project.
        folder: its name becomes the wandb run's.
        settings: logged as the run's config.
        job: "train" begins a run; "test" goes on with it where a server holds it.
    """
    known = folder / "wandb-id"  # of a training that a server holds
    begun = known.read_text(errors="replace") if known.is_file() and mode == "online" else None
    begun = begun if begun and re.fullmatch(r"\w+", begun, re.ASCII) else None
    name = folder.name if job == "train" or begun else f"{folder.name}-{job}"

    def init(mode: Any) -> wandb.Run:
        return wandb.init(
            project=project, name=name, id=begun, resume="allow" if begun else None,
            dir=folder, config=settings, mode=mode, settings=SETTINGS,
        )  # fmt: skip

    try:
        run = init(mode)
    except wandb.Error as error:
        said = str(error).partition("\n")[0]
        print(f"wandb: {'the server does not answer' if said.startswith('Timed out') else said}")
        run = init("offline")
    tracker = Tracker(run)
    if run.offline:
        print(f"wandb: offline; to upload: wandb sync {folder}/wandb/offline-run-*")
    elif run.url:
        print(f"wandb: {run.url}")
        known.write_text(run.id)
        for epoch in read_history(folder):  # what a killed run, or its server, did not live to send
            if epoch["epoch"] >= run.starting_step:
                figures = {name: value for name, value in epoch.items() if name != "best"}
                tracker.log(figures, step=epoch["epoch"])
    # Not `with run`, which prints the traceback of whatever ends it, Ctrl-C included.
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    finally:
        if tracker.alive:
            finish(run, folder, exit_code)


def finish(run: wandb.Run, folder: Path, exit_code: int) -> None:
    """Upload what is left; if that does not succeed, say how to do it later."""
    log = Path(run.settings.log_internal)  # a refused upload is said nowhere else
    lost = True
    with suppress(TimeoutError, ConnectionError):
        run.finish(exit_code)
        lost = log.is_file() and "filestream: fatal error" in log.read_text()
    if lost:
        command = f"wandb sync --no-skip-online {folder}/wandb/{log.parent.parent.name}"
        print(f"wandb: not all has arrived; to upload: {command}")


def log_results(
    mode: str, project: str, folder: Path, results: dict[str, Any], output: Path
) -> None:
    """Test figures into a wandb summary and the plots as images; online into the training's run.

    An offline run cannot be resumed: there the test is a run of its own, with "-test" in its name.
    """
    if mode == "disabled":
        return
    figures = {
        f"test_{name}": value["value"]
        for name, value in results.items()
        if isinstance(value, dict) and "value" in value
    }
    with tracking(mode, project, folder, {"tested": folder.name}, job="test") as tracker:
        plots = {path.stem: wandb.Image(str(path)) for path in (output / "plots").glob("*.png")}
        tracker.log({f"test/{name}": image for name, image in plots.items()})
        tracker.summarise(figures)
