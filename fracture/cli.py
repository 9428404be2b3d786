"""How a script ends: 0 done, 2 the input or the machine is at fault, 130 Ctrl-C, 143 SIGTERM."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong. The message is one line: what, where, and what to do about it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: like Ctrl-C, from a scheduler or a shutdown instead of a person."""


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(name: object) -> str:
    """A file name for a line of a terminal: its control characters would break or recolour it."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda odd: repr(odd[0])[1:-1], str(name))


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn wrong input, refused files and signals into one line; a bug keeps its traceback."""
    script = Path(sys.argv[0]).name
    try:
        Path.home()
    except RuntimeError:  # as in a container under a number that is no user's; wandb would not run
        os.environ["HOME"] = str(Path.cwd())
        print(f"HOME is not set: what libraries keep there goes to {Path.cwd()}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        yield
    except InputError as error:
        sys.exit(_say(script, str(error), 2))
    except Terminated:
        sys.exit(_say(script, "terminated", 143))
    except KeyboardInterrupt:
        sys.exit(_say(script, "interrupted", 130))
    except BrokenPipeError:  # whoever read our output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no permission, disk full, a file where a folder should be
        where = error.filename2 or error.filename or "writing"
        advice = "; make room and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        sys.exit(_say(script, f"{where}: {error.strerror or one_line(error)}{advice}", 2))
    except (RuntimeError, MemoryError) as error:
        if not (fault := _machine_fault(error)):
            raise
        sys.exit(_say(script, fault, 2))
    finally:
        # Outside these blocks the scripts only import: there Ctrl-C ends them without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _machine_fault(error: Exception) -> str | None:
    """What is short on this machine, where torch says so in many ways; None if it is a bug.

    torch looks after its workers by a signal: of a killed one it tells wherever the program is.
    """
    text = str(error).strip()
    if "DataLoader worker" in text:
        last = text.splitlines()[-1].split(". ")[0].rstrip(".")
        return (
            f"{last}; is memory short, or /dev/shm? what is finished is kept: run again with fewer "
            "--workers (0 needs neither)"
        )
    if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", text):
        return "memory is short; what is finished is kept: make room, or use smaller images"
    return None


def _terminate(*_: object) -> None:
    raise Terminated


def _say(script: str, message: str, status: int) -> int:
    print(f"{script}: {shown(message)}", file=sys.stderr)
    return status
