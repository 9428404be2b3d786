"""Weights & Biases, which must never stop a run: no prompt, no crash, no hang."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import wandb

from fracture.cli import InputError, one_line
from fracture.config import WandbMode

# A server that hangs costs both limits at worst, in seconds; wandb alone would wait forever.
LIMITS: dict[str, Any] = {"init_timeout": 4, "finish_timeout": 4, "finish_timeout_raises": True}
# wandb's reports about itself wait up to 20 s more, and are sent even offline.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def quiet_settings(**more: Any) -> wandb.Settings:
    """New ones for each call: wandb writes into the settings that it is given."""
    return wandb.Settings(**LIMITS, console="off", silent=True, **more)


def pick_mode(mode: WandbMode) -> str:
    """Resolve "auto": WANDB_MODE if it is set, else online with a key, else offline.

    Raises:
        InputError: online was asked for without a key (wandb itself would prompt for one), or a
            WANDB_ variable is wrong.
    """
    wanted = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
    if wanted not in get_args(WandbMode):
        raise InputError(f"WANDB_MODE is {wanted!r}; allowed: online, offline, disabled")
    if wanted in ("offline", "disabled"):
        return wanted
    try:
        wandb.setup(quiet_settings(mode="online"))  # WANDB_MODE=offline hides the key
        has_key = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:
        raise InputError(f"wandb: {one_line(error)} (or pass --wandb_mode offline)") from error
    if wanted == "online" and not has_key:
        raise InputError("wandb_mode is online, but there is no key; first: wandb login")
    return "online" if has_key else "offline"


@contextmanager
def tracking(
    mode: Any, project: str, folder: Path, settings: dict[str, Any], job: str = "train"
) -> Iterator[wandb.Run]:
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
    options: dict[str, Any] = {"id": run_id, "resume": "allow"} if run_id else {}
    options |= {"project": project, "name": name, "dir": folder, "config": settings}
    try:
        run = wandb.init(**options, mode=mode, settings=quiet_settings())
    except wandb.Error as error:
        print(f"wandb: {one_line(error, 60)}; logging offline")
        run = wandb.init(**options, mode="offline", settings=quiet_settings())
    if run.offline:
        print(f"wandb: offline; to upload: wandb sync {folder}/wandb/offline-run-*")
    elif run.url:
        print(f"wandb: {run.url}")
        known.write_text(run.id)
    succeeded = False  # not `with run`, which prints the traceback of whatever ends it, even Ctrl-C
    try:
        yield run
        succeeded = True
    finally:
        try:
            run.finish(exit_code=0 if succeeded else 1)
        except (TimeoutError, ConnectionError):
            print(f"wandb: not everything was uploaded; later: wandb sync {folder}/wandb/*run-*")


def log_test(mode: str, project: str, folder: Path, results: dict[str, Any]) -> None:
    """Log a tested run's metrics to wandb's summary, and its plots as images.

    Args:
        mode: from `pick_mode`.
        project: wandb's project.
        folder: of the run.
        results: as in metrics.json.
    """
    metrics = {name: m["value"] for name, m in results.items() if isinstance(m, dict) and "n" in m}
    plots = (folder / "test" / "plots").glob("*.png")
    test = tracking(mode, project, folder, {"tested": folder.name}, job="test")
    with test as run, suppress(ConnectionError):  # wandb's own process has died
        run.log({f"test/{path.stem}": wandb.Image(str(path)) for path in plots})
        run.summary.update({f"test_{name}": value for name, value in metrics.items()})
