"""Files and folders that are never half there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fracture.atomic import scratch, swap, whole
from fracture.cli import InputError


def test_only_one_process_builds_or_writes_the_same(tmp_path: Path) -> None:
    with scratch(tmp_path / "split") as first:
        with (
            pytest.raises(InputError, match="another process is making it"),
            scratch(tmp_path / "split"),
        ):
            pass
        (first / "a").touch()
        swap(first, tmp_path / "split", replace=False)
    with whole(tmp_path / "table") as new:
        with (
            pytest.raises(InputError, match="another process is writing it"),
            whole(tmp_path / "table"),
        ):
            pass
        new.write_text("whole")
    assert (tmp_path / "table").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"split", "table"}


def test_what_has_come_into_being_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with scratch(tmp_path / "split") as new:
        (tmp_path / "split").mkdir()
        (tmp_path / "split" / "another's").touch()
        with pytest.raises(InputError, match="meanwhile"):
            swap(new, tmp_path / "split", replace=False)
    assert [path.name for path in (tmp_path / "split").iterdir()] == ["another's"]


def test_a_kill_or_a_signal_while_a_folder_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first of the two renames; interrupted in place of the second."""
    old = tmp_path / ".test.new" / "old"
    old.mkdir(parents=True)
    (old / "older").touch()
    with scratch(tmp_path / "test"):
        assert (tmp_path / "test" / "older").exists()
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "work":
            signal.raise_signal(signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path / "test") as new:
        swap(new, tmp_path / "test", replace=True)
    assert (tmp_path / "test" / "older").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
