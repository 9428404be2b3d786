"""How a script ends: 0 done, 2 wrong input or a machine at its limit, 130 Ctrl-C, 143 SIGTERM."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten

# On a shared machine, torch's threads would wait for each other in a busy loop and take the cores
# from the very threads that they wait for. Read when torch is imported, which comes after this.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# torch has no exception of its own for these; a killed decoder may also reset its connection.
SHORT_OF_MEMORY = "DataLoader worker|out of memory|allocate memory|MemoryError|ConnectionReset"


class InputError(Exception):
    """The user's input is wrong. The message is one line: what, where, and what to do about it."""


def one_line(error: Exception, most: int = 10_000) -> str:
    """An error's text without line breaks, or its type if it has no text.

    Args:
        error: of any kind.
        most: characters; what is longer is cut between two words.
    """
    return shorten(str(error), most) or type(error).__name__


def escape_controls(name: object) -> str:
    """Escape what would break or recolour a line of the terminal, or cannot be printed at all."""
    odd = r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
    return re.sub(odd, lambda found: repr(found[0])[1:-1], str(name))


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main. Wrong input and Ctrl-C end in one line; a bug keeps its traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as on Ctrl-C, `finally` runs
    try:
        main()
    except InputError as error:
        _exit(2, str(error))
    except KeyboardInterrupt:
        _exit(130, "interrupted")
    except BrokenPipeError:  # the reader of our output has seen enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RuntimeError, MemoryError, ConnectionResetError) as error:
        if not re.search(SHORT_OF_MEMORY, repr(error)):
            raise
        advice = "finished work is kept; try --workers 0"
        _exit(2, f"short of memory or /dev/shm ({one_line(error)[-150:]}); {advice}")
    except OSError as error:  # no permission, disk full, a file where a folder should be
        where = error.filename2 or error.filename or "writing"
        advice = "; make room and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        _exit(2, f"{where}: {error.strerror or one_line(error)}{advice}")
    finally:
        # Between two calls a script only imports: Ctrl-C then ends it without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(status: int, message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {escape_controls(message)}", file=sys.stderr)
    sys.exit(status)
