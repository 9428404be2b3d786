"""How a script ends: its status, and one line on stderr."""

import errno
import signal
import sys
from collections.abc import Iterator

import pytest

from fracture.cli import InputError, escape_controls, one_line, run_script
from tests.conftest import Capture, Patch

MEMORY = "short of memory"


@pytest.fixture(autouse=True)
def script(monkeypatch: Patch) -> Iterator[None]:
    """The process is called train.py, and gets its signal handlers back."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py"])
    handlers = {sent: signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)}
    yield
    for sent, handler in handlers.items():
        signal.signal(sent, handler)


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("film\n\x1b[31m.png"), r"film\n\x1b[31m.png"),
        (KeyboardInterrupt(), "interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), "runs: Permission denied"),
        (OSError("truncated"), "writing: truncated"),
        (OSError(errno.ENOSPC, "No space", "a", 0, "b"), "b: No space; make room and run again"),
        (MemoryError(), MEMORY), (RuntimeError("CUDA out of memory"), MEMORY),
        (RuntimeError("DataLoader worker (pid 7) is killed\nby signal"), MEMORY),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_bug_ends_in_its_status_and_one_line(
    error: BaseException, said: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as end:
        run_script(lambda: raise_it(error))
    assert end.value.code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    line = capsys.readouterr().err
    assert line.startswith(f"train.py: {said}")
    assert line.endswith("try --workers 0\n" if said == MEMORY else f"{said}\n")
    assert line.count("\n") == 1


@pytest.mark.parametrize("bug", [RuntimeError("shapes"), KeyError("name")])
def test_a_bug_keeps_its_traceback_and_sigterm_lets_finally_run(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        run_script(lambda: raise_it(bug))
    with pytest.raises(SystemExit) as end:
        run_script(lambda: signal.raise_signal(signal.SIGTERM))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_name_breaks_or_recolours_a_line_and_no_error_is_without_text() -> None:
    assert escape_controls("a\nb\x1b[31m\x9f\udcff ö") == r"a\nb\x1b[31m\x9f\udcff ö"
    assert (one_line(ValueError("two\n  lines")), one_line(OSError())) == ("two lines", "OSError")
    assert one_line(ValueError("cut between words"), 17) == "cut between words"
    assert one_line(ValueError("cut between words"), 16) == "cut [...]"
