"""Weights & Biases, which must never stop a run: no prompt, no crash, no hang."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import wandb

from fracture.cli import InputError, one_line
from fracture.config import WandbMode

# A server that hangs costs both limits at worst; wandb alone would wait forever.
SETTINGS = wandb.Settings(
    init_timeout=4, finish_timeout=4, finish_timeout_raises=True, console="off", silent=True
)
# wandb's reports about itself wait up to 20 s more, and are sent even offline.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def pick_mode(mode: WandbMode) -> str:
    """Resolve "auto": WANDB_MODE if it is set, else online with a key, else offline.

    Raises:
        InputError: online was asked for without a key (wandb itself would prompt for one), or a
            WANDB_ variable is wrong.
    """
    wanted = (os.environ.get("WANDB_MODE") or mode) if mode == "auto" else mode
    if wanted not in get_args(WandbMode):
        raise InputError(f"WANDB_MODE is {wanted!r}; allowed: online, offline, disabled")
    if wanted in ("offline", "disabled"):
        return wanted
    try:
        wandb.setup(SETTINGS)
        has_key = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:
        raise InputError(f"wandb: {one_line(error)} (or pass --wandb_mode offline)") from error
    if wanted == "online" and not has_key:
        raise InputError("wandb_mode is online, but there is no key; first: wandb login")
    return "online" if has_key else "offline"


class Tracker:
    """A wandb run that survives the death of wandb's process: it prints one line and goes on."""

    def __init__(self, run: wandb.Run) -> None:
        self.run, self.alive = run, True

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self._send(lambda: self.run.log(values, step))

    def summarize(self, values: dict[str, Any]) -> None:
        self._send(lambda: self.run.summary.update(values))

    def _send(self, send: Callable[[], object]) -> None:
        try:
            if self.alive:
                send()
        except ConnectionError:
            self.alive = False
            print("wandb: its process has ended; this run goes on without it")


@contextmanager
def tracking(
    mode: str, project: str, folder: Path, settings: dict[str, Any], job: str = "train"
) -> Iterator[Tracker]:
    """A wandb run in a run's folder, finished at the end; prints where it logs to.

    A resumed training goes on in its wandb run if a server holds it, and so does its test. An
    offline run cannot be resumed: each part is a wandb run of its own.

    Args:
        mode: from `pick_mode`; online falls back to offline if no server answers.
        project: wandb's project.
        folder: its name becomes the wandb run's name.
        settings: logged as the run's config.
        job: "train" or "test".
    """
    known = folder / "wandb-id"
    run_id = known.read_text() if known.is_file() and mode == "online" else None
    name = folder.name if job == "train" or run_id else f"{folder.name}-{job}"

    def start(mode: Any) -> wandb.Run:
        return wandb.init(
            project=project, name=name, id=run_id, resume="allow" if run_id else None,
            dir=folder, config=settings, mode=mode, settings=SETTINGS,
        )  # fmt: skip

    try:
        run = start(mode)
    except wandb.Error as error:
        print(f"wandb: {one_line(error)[:60]}; logging offline")
        run = start("offline")
    if run.offline:
        print(f"wandb: offline; to upload: wandb sync {folder}/wandb/offline-run-*")
    elif run.url:
        print(f"wandb: {run.url}")
        known.write_text(run.id)
    tracker = Tracker(run)
    exit_code = 1  # not `with run`, which prints the traceback of whatever ends it, even Ctrl-C
    try:
        yield tracker
        exit_code = 0
    finally:
        if tracker.alive and not _finished(run, exit_code):
            print(f"wandb: not everything was uploaded; later: wandb sync {folder}/wandb/run-*")


def _finished(run: wandb.Run, exit_code: int) -> bool:
    with suppress(TimeoutError, ConnectionError):
        run.finish(exit_code)
        return True
    return False


def log_test(mode: str, project: str, folder: Path, results: dict[str, Any]) -> None:
    """Log a tested run's metrics to wandb's summary, and its plots as images.

    Args:
        mode: from `pick_mode`.
        project: wandb's project.
        folder: of the run.
        results: as in metrics.json.
    """
    if mode == "disabled":
        return
    metrics = {
        f"test_{name}": value["value"]
        for name, value in results.items()
        if isinstance(value, dict) and "value" in value
    }
    plots = (folder / "test" / "plots").glob("*.png")
    with tracking(mode, project, folder, {"tested": folder.name}, job="test") as tracker:
        tracker.log({f"test/{path.stem}": wandb.Image(str(path)) for path in plots})
        tracker.summarize(metrics)
