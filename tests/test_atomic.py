"""Files and folders that are never half there."""

import errno
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from fracture.atomic import atomic_write, publish, staging_dir
from fracture.cli import InputError
from tests.conftest import files_in

ERRORS = [None, OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_files_and_folders_appear_complete_or_not_at_all(
    tmp_path: Path, error: BaseException | None
) -> None:
    (file := tmp_path / "table.csv").write_text("old")
    with suppress(OSError, KeyboardInterrupt), atomic_write(file) as new:
        new.write_text("new")
        assert file.read_text() == "old"
        if error:
            raise error
    with suppress(OSError, KeyboardInterrupt), staging_dir(tmp_path / "split") as stage:
        (stage / "a").touch()
        if error:
            raise error
        publish(stage, tmp_path / "split")
    there = {"table.csv": b"old"} if error else {"table.csv": b"new", "split/a": b""}
    assert files_in(tmp_path) == there
    assert not isinstance(error, OSError) or error.filename == str(file)


def test_a_folder_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    for name, replace in (("first", False), ("new", True)):
        with staging_dir(target := tmp_path / "split") as stage:
            (stage / name).touch()
            publish(stage, target, replace)
    with staging_dir(target) as stage, pytest.raises(InputError, match="created by another"):
        publish(stage, target)
    assert files_in(tmp_path) == {"split/new": b""}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_within_a_replacement_loses_neither_folder(tmp_path: Path, renames: int) -> None:
    """What `publish` has done when it is killed after none, one and both of its renames."""
    target, stage = tmp_path / "test", tmp_path / ".test.new"
    for folder, file in ((target, "old"), (stage / "work", "new")):
        folder.mkdir(parents=True)
        (folder / file).touch()
    for old, new in [(target, stage / "old"), (stage / "work", target)][:renames]:
        old.rename(new)
    with staging_dir(target) as work:
        assert not [*work.iterdir()]
    assert files_in(tmp_path) == {"test/new" if renames == 2 else "test/old": b""}


def build(target: Path) -> None:
    with staging_dir(target):
        pass


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as other:
        with staging_dir(target := tmp_path / "split"), pytest.raises(InputError, match="another"):
            other.submit(build, target).result()
        other.submit(build, target).result()
    assert not [*tmp_path.iterdir()]
