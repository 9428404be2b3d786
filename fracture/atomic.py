"""Files and folders that are never half there, whenever the process that writes them is killed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fracture.cli import InputError


def lock(path: Path, message: str) -> FileLock:
    """Lock a file until the process ends, however it ends, or until `release()`.

    Raises:
        InputError: another process holds the lock; with this message.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(message) from error
    return held


@contextmanager
def attach_path(path: Path) -> Iterator[None]:
    """Attach the path to an OSError that lacks one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno:  # else it is a library's own error, with a text
            error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file gets its name, and replaces an old one, once on disk."""
    new = path.with_name(f".new-{path.name}")
    with attach_path(path):
        try:
            yield new
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


@contextmanager
def staging_dir(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside the target, to build the target in before `publish`.

    It is removed at the end; the next call removes what a killed process left.

    Raises:
        InputError: another process is building the same target.
    """
    stage = target.with_name(f".{target.name}.new")
    stage.mkdir(parents=True, exist_ok=True)
    held = lock(stage / "lock", f"{target}: another process is making it; wait for it to end")
    try:
        if not target.exists() and (stage / "old").exists():  # killed in the middle of `publish`
            (stage / "old").rename(target)
        for left in ("work", "old"):
            shutil.rmtree(stage / left, ignore_errors=True)
        (stage / "work").mkdir()
        with attach_path(target):
            yield stage / "work"
    finally:
        held.release()
        shutil.rmtree(stage, ignore_errors=True)


def publish(new: Path, target: Path, replace: bool = False) -> None:
    """Rename a finished folder, built in `staging_dir`, to its target.

    Raises:
        InputError: the target exists and must not be replaced.
    """
    old = new.with_name("old")
    if target.exists() and not replace:
        raise InputError(f"{target} was created by another process and is not replaced")
    if target.exists():
        target.rename(old)  # if we are killed here, the next `staging_dir` puts it back
    new.rename(target)
