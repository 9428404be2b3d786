"""Faults of the machine, each one real: what the user sees, and that nothing is lost."""

import multiprocessing
import re
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import infer
import split_dataset
import train
from fracture.cli import run_script
from tests.conftest import LITE, MAINS, ROOT, Patch, files_in, slow
from tests.faults.conftest import on_another_machine, results

COLD = ("train.py", *LITE, "--epochs", "3", "--cache_dir", "cold", "--run", "new")
TRAIN = tuple(word.replace("cold", "cache") for word in COLD)
SPLIT = ("split_dataset.py", "--data_root", "drawn", "--split_dir", "out/split")
TEST = ("infer.py", "--run", "first")


def check(place: Path, right: Path) -> None:
    """All that was made is as without the fault, and nothing else lies about."""
    for history in place.glob("**/runs/new/history.jsonl"):
        epochs = (right / "runs/first/history.jsonl").read_text().splitlines()
        assert history.read_text().splitlines() == epochs[:3]
    for manifest in place.glob("out/split/manifest.csv"):
        assert manifest.read_bytes() == (right / "data/split/manifest.csv").read_bytes()
    assert results(place) == results(right)
    assert [*place.rglob(".new-*"), *place.rglob(".*.new")] == []


@pytest.mark.parametrize(
    ("folder", "room", "command", "named"),
    [
        ("runs", 84, TRAIN, "runs/new/last.pt"),
        pytest.param("runs", None, TRAIN, "runs/new", marks=slow),
        pytest.param("runs", 100, TEST, "runs/first/test", marks=slow),
        pytest.param("cold", 100, COLD, "cold/.*/features.bin", marks=slow),
        pytest.param("out", 100, SPLIT, "out/.*split", marks=slow),
        pytest.param("out", None, SPLIT, "out/.split.new", marks=slow),
    ],
)
def test_where_nothing_can_be_written_a_line_says_so_and_the_old_files_stay(
    place: Path, trained_project: Path, folder: str, room: int | None, command: tuple, named: str
) -> None:
    """On a disk with room for some KiB, or on one that is read-only."""
    shutil.copytree(place / folder if folder == "runs" else "drawn", "was", symlinks=True)
    before = files_in(place / "was")
    size = sum(-(-len(content) // 4096) * 4 for content in before.values()) + (room or 9999)
    setup = f"mkdir -p {folder}; mount -t tmpfs -o size={size}k none {folder}; cp -a was/. {folder}"
    setup += "" if room else f"; mount -o remount,ro {folder}"
    script, *arguments = command
    done = on_another_machine(setup, str(ROOT / script), *arguments, after=f"cp -a {folder} full")
    told = "No space left .*; make room and run again" if room else "Read-only file system"
    assert re.fullmatch(f"{script}: .*{named}.*: {told}\n", done.stderr), done.stderr
    there = files_in(place / "full")
    assert (done.returncode, {name: there.get(name) for name in before}) == (2, before)
    shutil.rmtree(place / folder)
    (place / "full").rename(place / folder)
    MAINS[script](["--resume", "new"] if (place / "runs/new").exists() else arguments)
    shutil.rmtree(place / "was")
    check(place, trained_project)


def test_a_decoding_process_that_is_killed_ends_in_one_line(place: Path, capsys: Any) -> None:
    """What is finished by then stays in the cache."""

    def strike() -> None:
        while not [*place.glob("cold/*/features.bin")]:
            time.sleep(0.01)
        multiprocessing.active_children()[-1].kill()

    threading.Thread(target=strike, daemon=True).start()
    with pytest.raises(SystemExit, match="2"):
        run_script(lambda: train.main([*COLD[1:], "--image_size", "384", "--workers", "2"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    reason = "(DataLoader worker|Connection reset)"
    told = f".*: short of memory or /dev/shm .*{reason}.*; finished work is kept; .*\n"
    assert re.fullmatch(told, capsys.readouterr().err)
    assert [file.stat().st_size > 0 for file in place.glob("cold/*/features.bin")] == [True]


@slow
def test_a_small_machine_says_what_is_short_or_does_it(place: Path, trained_project: Path) -> None:
    """Two decoding processes with a /dev/shm of 64 KiB; then one CPU."""
    command = (str(ROOT / "train.py"), *COLD[1:], "--workers")
    done = on_another_machine("mount -t tmpfs -o size=64k none /dev/shm", *command, "2")
    assert done.returncode == 2
    assert re.fullmatch("train.py: short of memory or /dev/shm .*\n", done.stderr)
    done = on_another_machine("taskset -cp 0 $$", *command, "auto")
    assert (done.returncode, done.stderr) == (0, "")
    check(place, trained_project)


@pytest.mark.parametrize("name", ["wörk räum, 日本 'x' \"y\" $z ;&", "a" * 210])
def test_any_path_and_any_file_system_will_do(
    place: Path, trained_project: Path, name: str, monkeypatch: Patch
) -> None:
    """Data in memory: no hard link reaches there."""
    (place / name).mkdir()
    monkeypatch.chdir(place / name)
    with tempfile.TemporaryDirectory(prefix=name, dir="/dev/shm") as far:
        shutil.copytree("../drawn", far, dirs_exist_ok=True)
        split_dataset.main(["--data_root", far, "--split_dir", "../out/split"])
    train.main([*TRAIN[1:], "--cache_dir", f"{place}/cache", "--split_dir", "../out/split"])
    infer.main([f"{place}/out/split/test", "--out", "ü b.csv", "--heatmaps", f"./{name}"])
    tested = len([*place.glob("out/split/test/*/*")])
    assert len(Path("ü b.csv").read_text().splitlines()) - 1 == tested
    assert len([*Path(name).glob("*.png")]) == tested
    check(place, trained_project)
