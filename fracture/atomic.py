"""Files and folders that are never half there, whatever ends the process that writes them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fracture.cli import InputError


def files_below(folder: Path) -> Iterator[Path]:
    """All that is no folder, at any depth. A link to a folder is not followed but listed.

    Raises:
        OSError: a folder cannot be read; `Path.rglob` would leave out what is in it.
    """

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in files)
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())


def lock(file: IO, message: str) -> None:
    """Hold an open, writable file until it is closed or the process ends, however it ends.

    Raises:
        InputError: another process holds it; with the message.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(message) from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error in writing say where: that of a full disk comes without a name."""
    try:
        yield
    except OSError as error:
        if error.errno:  # else it is some library's own, with a text
            error.filename = error.filename or str(path)
        raise


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """An empty folder beside a target, to build it in; it goes, and so does what a kill left of it.

    Raises:
        InputError: another process is building the same.
    """
    place = target.with_name(f".{target.name}.new")
    place.mkdir(parents=True, exist_ok=True)
    with named(target), (place / "lock").open("w") as file:
        lock(file, f"{target}: another process is making it; wait for that one")
        try:
            if not target.exists() and (place / "old").exists():  # killed in the midst of `swap`
                (place / "old").rename(target)
            _clear(place)
            (place / "work").mkdir()
            yield place / "work"
        finally:
            _clear(place)
            shutil.rmtree(place, ignore_errors=True)  # last: it holds the lock


def _clear(place: Path) -> None:
    for name in ("old", "work"):
        shutil.rmtree(place / name, ignore_errors=True)


def swap(new: Path, target: Path, replace: bool) -> None:
    """Give a finished folder in `scratch` its name.

    Args:
        new: the folder.
        target: its name.
        replace: an older one of that name may go.

    Raises:
        InputError: there is one, and it may not.
    """
    old = new.with_name("old")
    if target.exists() and not replace:
        raise InputError(f"{target} has come into being meanwhile, and is not replaced")
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        if not target.exists() and old.exists():
            old.rename(target)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is never half there: the old one stays until it is on disk.

    Raises:
        InputError: another process is writing it.
    """
    new = path.with_name(f".new-{path.name}")
    with named(path), new.open("a") as file:
        lock(file, f"{path}: another process is writing it")
        try:
            yield new
            with new.open("rb") as written:
                os.fsync(written.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
