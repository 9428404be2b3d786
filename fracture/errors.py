"""How a script ends: status 0 done, 2 the user's input is wrong, 130 interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong. The message is one line: what, where, and what to do about it."""


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn `InputError` and Ctrl-C into one line on stderr; a bug keeps its traceback."""
    script = Path(sys.argv[0]).name
    try:
        yield
    except InputError as error:
        print(f"{script}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted", file=sys.stderr)
        sys.exit(130)
