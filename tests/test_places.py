"""Wherever things are: strange paths, links, other file systems, no home."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import QUIET, ROOT, files_in, on_another_machine, run_script, soak
from tests.test_machine import READ_ONLY, TRAIN, check_results, place

__all__ = ["place"]


@soak
def test_what_is_only_read_may_be_read_only_and_lie_on_other_file_systems(
    place: Path, drawn: Path
) -> None:
    """Data and a warm cache; no hard link reaches from there to the split, the run is elsewhere."""
    setup = (
        f"mkdir far; mount -t tmpfs none far; cp -rL drawn cache far/; {READ_ONLY.format('far')}"
    )
    split = ("split_dataset.py", "--data_root", "far/drawn", "--split_dir", "out/split")
    script = f"{sys.executable} {ROOT}/"
    train = (*TRAIN, "--cache_dir", "far/cache", "--split_dir", "out/split")
    done = on_another_machine(place, setup, *split, after=f"{script}{' '.join(train)}")
    assert done.returncode == 0, done.stderr
    assert "0 not in far/cache" in done.stdout
    check_results(place)
    assert files_in(place / "drawn") == files_in(drawn)


@soak
def test_without_a_home_everything_runs(place: Path) -> None:
    """As in a container, under a number that no user has: wandb's client would refuse to start."""
    python = ["unshare", "--user", "--map-user=54321", sys.executable]
    env = {
        key: value for key, value in os.environ.items() if key not in ("HOME", "USER", "LOGNAME")
    }
    for script, *arguments in (TRAIN[:-2], ("infer.py",)):
        command = [*python, str(ROOT / script), *arguments, "--wandb_mode", "offline"]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        if "unshare" in done.stderr:
            pytest.skip("needs user namespaces")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"HOME is not set: what libraries keep there goes to {place}")


@pytest.mark.parametrize(
    "name",
    [
        "wörk räum, 日本 'x' \"y\" $z ;&",
        pytest.param("a" * 210, marks=soak),
        pytest.param("-rf", marks=soak),
    ],
)
def test_any_path_will_do(place: Path, drawn: Path, name: str) -> None:
    far = place / name / ("b" * 40)
    far.mkdir(parents=True)
    shutil.copytree(drawn, far / "my films")
    shutil.copytree(place / "cache", far / "cache")
    for command in (
        ("split_dataset.py", "--data_root", "my films", "--split_dir", f"{far}/data/split"),
        (*TRAIN, "--cache_dir", f"{far}/cache"),
        ("infer.py", *QUIET),
        ("infer.py", f"{far}/data/split/test", "--out", "ü b.csv", "--heatmaps", f"./{name}"),
    ):
        done = run_script(far, *command)
        assert (done.returncode, done.stderr) == (0, "")
    lines = (far / "runs" / "new" / "history.jsonl").read_text().splitlines()
    first = (place / "runs" / "first" / "history.jsonl").read_text().splitlines()
    assert lines == first[:3]


def test_links_are_followed_where_that_ends(place: Path, drawn: Path) -> None:
    """Data of links, and links in circles: what is no film in the end is excluded and named."""
    films = place / "films" / "images"
    films.mkdir(parents=True)
    for folder in sorted(drawn.glob("images/*")):
        (films / folder.name).mkdir()
        for film in folder.iterdir():
            (films / folder.name / film.name).symlink_to(film)
    (films / "Fractured" / "circle").symlink_to(films)
    (films / "Fractured" / "self.jpg").symlink_to("self.jpg")
    (films / "Fractured" / "gone.jpg").symlink_to("nowhere.jpg")
    shutil.copy(drawn / "dataset.csv", place / "films")
    done = run_script(place, "split_dataset.py", "--data_root", "films", "--split_dir", "out/split")
    assert done.returncode == 0, done.stderr
    with (place / "out" / "split" / "manifest.csv").open() as file:
        found = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    with (place / "data" / "split" / "manifest.csv").open() as file:
        assert all(found.pop(Path(row["image"]).name) == row for row in csv.DictReader(file))
    assert {row["split"] for row in found.values()} == {"excluded"}
    assert {name: row["reason"].split(";")[0] for name, row in found.items()} == {
        "circle": "undecodable: no regular file",
        "self.jpg": "undecodable: Too many levels of symbolic links",
        "gone.jpg": "undecodable: No such file or directory",
    }
