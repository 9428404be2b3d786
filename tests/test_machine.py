"""Faults of the machine, each one real: what the user sees, and that nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from tests.conftest import LITE, QUIET, ROOT, files_in, on_another_machine, run_script, soak

TRAIN = ("train.py", *LITE, *QUIET, "--epochs", "3", "--run", "new")
COLD = (*TRAIN, "--cache_dir", "cold")
AGAIN = ("train.py", "--resume", "new", *QUIET)
SPLIT = ("split_dataset.py", "--data_root", "drawn", "--split_dir", "out/split")
TABLE = ("infer.py", "data/split/test", "--out", "out/a.csv")
MAPS = ("infer.py", "data/split/test", "--heatmaps", "out/maps")


@pytest.fixture
def place(workplace: Path, drawn: Path, tmp_path: Path) -> Path:
    """A folder of its own with the drawn data and its split, the cache and a tested run."""
    (tmp_path / "data").symlink_to(workplace / "data")
    (tmp_path / "drawn").symlink_to(drawn)
    shutil.copytree(workplace / "cache", tmp_path / "cache")
    without = shutil.ignore_patterns("wandb")
    shutil.copytree(workplace / "runs" / "first", tmp_path / "runs" / "first", ignore=without)
    (tmp_path / "runs" / "latest").symlink_to("first")
    (tmp_path / "cold").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.csv").write_text("an older table\n")
    return tmp_path


def check_results(place: Path) -> None:
    """All that there is, is as without the fault."""
    first = (place / "data").resolve().parent / "runs" / "first"
    for history in (place / "runs").glob("new*/history.jsonl"):
        lines = history.read_text().splitlines()
        assert lines == (first / "history.jsonl").read_text().splitlines()[:3]
    for name in ("metrics.json", "predictions.csv"):
        assert (place / "runs/first/test" / name).read_text() == (first / "test" / name).read_text()
    for manifest in place.glob("out/split/manifest.csv"):
        assert manifest.read_bytes() == (place / "data/split/manifest.csv").read_bytes()
    assert not [*place.glob("**/.new-*"), *place.glob("**/.*.new"), *place.glob("**/*.tmp")]


@pytest.mark.parametrize(
    ("folder", "kibibytes", "command", "named", "again"),
    [
        pytest.param("cold", 100, COLD, "features.bin", COLD, marks=soak),
        pytest.param("runs", 0, TRAIN, "runs: No", TRAIN, marks=soak),
        pytest.param("runs", 8, TRAIN, "runs/new/best.pt", AGAIN, marks=soak),
        pytest.param("runs", 40, TRAIN, "runs/new/last.pt", AGAIN, marks=soak),
        ("runs", 84, TRAIN, "runs/new/last.pt", AGAIN),
        pytest.param("runs", 4, ("infer.py", *QUIET), "runs/first/test", None, marks=soak),
        pytest.param("runs", 100, ("infer.py", *QUIET), "runs/first/test", None, marks=soak),
        pytest.param("runs", 600, ("infer.py", *QUIET), "runs/first/test", None, marks=soak),
        pytest.param("out", 100, SPLIT, "out/.split.new", None, marks=soak),
        pytest.param("out", 0, TABLE, "out/a.csv", None, marks=soak),
        pytest.param("out", 0, MAPS, "out/maps", None, marks=soak),
    ],
)
def test_on_a_full_disk_a_line_names_the_file_and_what_was_there_stays(
    place: Path,
    folder: str,
    kibibytes: int,
    command: tuple[str, ...],
    named: str,
    again: tuple[str, ...] | None,
) -> None:
    before = files_in(place / folder)
    pages = sum(-(-len(content) // 4096) for content in before.values())
    mount = (
        f"mv {folder} was; mkdir {folder}; "
        f"mount -t tmpfs -o size={4 * pages + kibibytes}k none {folder}; cp -a was/. {folder}"
    )
    after = (
        f"cp -r {folder} full; mount -o remount,size=64m {folder}; "
        f"{sys.executable} {ROOT}/{' '.join(again or command)} > again; cp -r {folder} roomy"
    )
    done = on_another_machine(place, mount, *command, after=after)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "No space left on device; make room" in done.stderr
    assert done.stderr.count("\n") == 1
    there = files_in(place / "full")
    assert {name: there.get(name) for name in before} == before
    assert all(name.startswith(("new/", "efficientnet")) for name in there.keys() - before)
    shutil.rmtree(place / folder)
    (place / "roomy").rename(place / folder)
    check_results(place)


READ_ONLY = "mount --bind {0} {0}; mount -o remount,bind,ro {0}"


@pytest.mark.parametrize(
    ("folder", "command", "said"),
    [
        ("runs", TRAIN, "runs/.new-"),
        pytest.param("cold", COLD, "cold/efficientnet-lite0-", marks=soak),
        pytest.param("runs", ("infer.py", *QUIET), "runs/first/.test.new", marks=soak),
        pytest.param("out", SPLIT, "out/.split.new", marks=soak),
        pytest.param("out", TABLE, "out/.new-a.csv", marks=soak),
    ],
)
def test_a_read_only_folder_is_named(
    place: Path, folder: str, command: tuple[str, ...], said: str
) -> None:
    before = files_in(place / folder)
    done = on_another_machine(place, READ_ONLY.format(folder), *command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert "Read-only file system" in done.stderr
    assert files_in(place / folder) == before


def test_a_folder_that_may_not_be_read_is_named_not_left_out(place: Path) -> None:
    """With a subfolder left out in silence, the split would be another one."""
    shutil.copytree(place / "drawn", place / "films")
    secret = place / "films" / "images" / "Fractured" / "secret"
    secret.mkdir(mode=0)
    script = [sys.executable, str(ROOT / "split_dataset.py"), "--data_root", "films"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may read everything")
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    done = subprocess.run(
        [*(rights if os.geteuid() == 0 else []), *script, "--split_dir", "out/split"],
        cwd=place, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"split_dataset.py: {secret.relative_to(place)}: Permission denied\n"
    assert not (place / "out" / "split").exists()


def test_two_trainings_at_once_share_a_cache_and_lose_nothing(place: Path) -> None:
    """Both cold, begun together: names from the clock, one cache, one runs folder."""
    command = [sys.executable, str(ROOT / "train.py"), *LITE, *QUIET, "--cache_dir", "cold"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (place / "output").open("w") as output:
        both = [subprocess.Popen(command, cwd=place, env=env, stdout=output) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    runs = [run for run in (place / "runs").iterdir() if re.match(r"\d{8}-\d{6}-", run.name)]
    assert len(runs) == 2
    assert runs[0].joinpath("history.jsonl").read_text() == (
        runs[1].joinpath("history.jsonl").read_text()
    )
    assert (place / "runs" / "latest").resolve() in runs
    again = run_script(place, *COLD)
    assert again.returncode == 0, again.stderr
    assert " 0 not in cold/" in again.stdout


def test_the_clock_may_go_back(place: Path) -> None:
    """Files and a run of the year 2099 are not taken for newer than what is made now."""
    (place / "runs" / "first").rename(place / "runs" / "20991231-235959-efficientnet-lite0")
    for path in place.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (4_102_444_799, 4_102_444_799))
    done = run_script(place, *TRAIN[:-2])
    assert done.returncode == 0, done.stderr
    assert " 0 not in cache/" in done.stdout
    tested = run_script(place, "infer.py", *QUIET)
    assert tested.returncode == 0, tested.stderr
    assert f"run {datetime.now():%Y}" in tested.stdout


def test_a_decoder_that_the_kernel_kills_ends_in_one_line_and_what_is_finished_is_kept(
    place: Path, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *LITE, *QUIET]
    command += ["--image_size", "512", "--workers", "2", "--cache_dir", "new", "--run", "killed"]
    process = subprocess.Popen(
        command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not [*place.glob("new/*/features.bin")]:
        assert process.poll() is None
        time.sleep(0.01)
    psutil.Process(process.pid).children()[-1].send_signal(signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2, errors
    assert "is killed by signal: Killed" in errors
    assert errors.count("\n") == 1
    (file,) = place.glob("new/*/features.bin")
    assert file.stat().st_size > 0
    record_property("kills survived in processes that decode", 1)


@pytest.mark.parametrize(
    ("setup", "command", "status", "said"),
    [
        ("mount -t tmpfs -o size=64k none /dev/shm", (*COLD, "--workers", "2"), 2, "/dev/shm?"),
        pytest.param("taskset -cp 0 $$", (*COLD, "--workers", "auto"), 0, "", marks=soak),
        pytest.param(
            "ulimit -v 3500000", (*COLD, "--image_size", "2048"), 2, "memory is short", marks=soak
        ),
    ],
)
def test_a_small_machine_does_it_or_says_what_is_short(
    place: Path, setup: str, command: tuple[str, ...], status: int, said: str
) -> None:
    done = on_another_machine(place, setup, *command)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == (status > 0)
