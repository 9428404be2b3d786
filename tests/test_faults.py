"""Killed at random moments, each stage REPEATS times: nothing is lost and nothing is wrong.

All faults are listed in FAULTS.md.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fracture.cli import InputError
from fracture.features.cache import FeatureCache
from fracture.runs.checkpoint import hold, load_checkpoint, save_checkpoint
from tests.conftest import LITE, QUIET, REPEATS, kill, run_script

Count = Callable[[str, object], None]


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    """A folder of its own with the drawn data's split in it."""
    (tmp_path / "data").symlink_to(workplace / "data")
    return tmp_path


def test_a_killed_pass_computes_nothing_again(place: Path, record_property: Count) -> None:
    rng, survived = random.Random(1), 0
    images = len(list((place / "data" / "split").glob("[tv][ra]*/*/*")))
    for _ in range(REPEATS):
        cache = place / f"cache-{survived}"
        arguments = (*LITE, *QUIET, "--cache_dir", cache.name, "--image_size", "256")
        began = lambda cache=cache: any(cache.rglob("features.bin"))  # noqa: E731
        assert kill(place, rng.uniform(0, 0.3), began, "train.py", *arguments, "--epochs", "1")
        (file,) = cache.rglob("features.bin")
        recipe = json.loads(file.with_name("recipe.json").read_text())
        whole = len(FeatureCache(cache, recipe, 1280).find())
        assert whole > 0
        again = run_script(place, "train.py", *arguments, "--epochs", "1")
        assert again.returncode == 0, again.stderr
        new = int(again.stdout.split(" not in ")[0].split()[-1])
        assert new <= images - whole  # several files may have the same bytes
        assert len(FeatureCache(cache, recipe, 1280).find()) == whole + new
        survived += 1
    record_property("kills survived in the pass", survived)


def test_a_killed_run_resumes_to_the_same_bits(place: Path, record_property: Count) -> None:
    """Killed again and again within its epochs: their checkpoints are written every few ms."""
    rng, survived = random.Random(2), 0
    arguments = (*LITE, *QUIET, "--epochs", str(100 + 60 * REPEATS))
    whole = run_script(place, "train.py", *arguments, "--run", "whole")
    assert whole.returncode == 0, whole.stderr
    runs = place / "runs"
    chosen: tuple[str, ...] = (*arguments, "--run", "killed")
    history, cut_short = runs / "killed" / "history.jsonl", 0
    for _ in range(REPEATS):
        before = history.read_text().count("\n") if history.is_file() else 0
        reached = before + rng.randint(1, 40)
        began = lambda: history.is_file() and history.read_text().count("\n") >= reached  # noqa: B023, E731
        survived += kill(place, rng.uniform(0, 0.02), began, "train.py", *chosen)
        if (runs / "killed" / "last.pt").is_file():
            load_checkpoint(runs / "killed" / "best.pt")
            epoch = load_checkpoint(runs / "killed" / "last.pt")["epoch"]
            cut_short += 0 < epoch < 100 + 60 * REPEATS
        chosen = ("--resume", "killed")
    done = run_script(place, "train.py", *chosen)
    assert done.returncode == 0, done.stderr
    assert cut_short >= 1
    record_property("kills survived in epochs and checkpoints", survived)
    assert history.read_text() == (runs / "whole" / "history.jsonl").read_text()
    for name in ("best.pt", "last.pt"):
        one, two = (load_checkpoint(runs / run / name) for run in ("whole", "killed"))
        assert one["epoch"] == two["epoch"]
        assert torch.equal(one["head"]["linear.weight"], two["head"]["linear.weight"])
        assert torch.equal(one["head"]["linear.bias"], two["head"]["linear.bias"])
    moments = [load_checkpoint(runs / run / "last.pt")["optimizer"] for run in ("whole", "killed")]
    torch.testing.assert_close(moments[0]["state"], moments[1]["state"], rtol=0, atol=0)
    best = [load_checkpoint(runs / run / "best.pt") for run in ("whole", "killed")]
    assert best[0]["thresholds"] == best[1]["thresholds"]
    assert best[0]["temperature"] == best[1]["temperature"]


def test_a_killed_split_is_no_split_or_a_whole_one(
    place: Path, drawn: Path, record_property: Count
) -> None:
    rng, survived = random.Random(3), 0
    arguments = ("--data_root", str(drawn), "--split_dir", "new/split")
    for _ in range(REPEATS):
        began = lambda: (place / "new/.split.new").exists() or (place / "new/split").exists()  # noqa: E731
        survived += kill(place, rng.uniform(0, 0.03), began, "split_dataset.py", *arguments)
        if (place / "new" / "split").exists():
            checked = run_script(place, "split_dataset.py", *arguments, "--check")
            assert checked.returncode == 0, checked.stderr
            (place / "new" / "split").rename(place / f"split-{survived}")
    assert run_script(place, "split_dataset.py", *arguments).returncode == 0
    made = (place / "new/split/manifest.csv").read_bytes()
    assert made == (place / "data/split/manifest.csv").read_bytes()
    record_property("kills survived in split_dataset.py", survived)


def test_a_killed_evaluation_leaves_the_next_one_right(
    workplace: Path, place: Path, record_property: Count
) -> None:
    rng, survived = random.Random(4), 0
    (place / "runs").mkdir()
    run = place / "runs" / "first"
    run.mkdir()
    for name in ("best.pt", "history.jsonl", "config.yaml"):
        (run / name).write_bytes((workplace / "runs" / "first" / name).read_bytes())
    arguments = ("--run", "first", *QUIET)

    def check() -> None:
        for name in ("metrics.json", "predictions.csv"):
            there = (workplace / "runs" / "first" / "test" / name).read_text()
            assert (run / "test" / name).read_text() == there

    for _ in range(REPEATS):
        began = lambda: (run / ".test.new" / "work").exists()  # noqa: E731
        survived += kill(place, rng.uniform(0, 2.5), began, "infer.py", *arguments)
        if (run / "test").exists():  # from now on killed while it replaces what is there
            check()
    assert run_script(place, "infer.py", *arguments).returncode == 0
    check()
    assert survived > 0
    assert not [*run.glob(".*.new")]
    record_property("kills survived in infer.py", survived)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(
    workplace: Path, tmp_path: Path, record_property: Count
) -> None:
    """Or it lies where nothing is read from, and all content is as it was."""
    good = workplace / "runs" / "first" / "best.pt"
    content, right = good.read_bytes(), load_checkpoint(good)
    bad = tmp_path / "best.pt"
    rng, noticed, harmless, flips = random.Random(5), 0, 0, 30 * REPEATS
    for _ in range(flips):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        bad.write_bytes(flipped)
        try:
            found = load_checkpoint(bad)
        except InputError as error:
            noticed += str(error).startswith(f"{bad}: ")
        else:
            harmless += 1
            assert torch.equal(found["head"]["linear.weight"], right["head"]["linear.weight"])
            assert torch.equal(found["head"]["linear.bias"], right["head"]["linear.bias"])
            assert {**found, "head": 0} == {**right, "head": 0}
    assert noticed + harmless == flips
    assert noticed > harmless
    record_property("bits flipped in checkpoints", flips)


def test_a_run_is_resumed_by_one_process_only_and_under_its_own_name(
    workplace: Path, place: Path
) -> None:
    (place / "runs").mkdir()
    shutil.copytree(workplace / "runs" / "first", place / "runs" / "first", symlinks=True)
    (place / "runs" / "latest").symlink_to("first")
    with hold(place / "runs" / "first"):
        done = run_script(place, "train.py", "--resume", "first", *QUIET)
    assert (done.returncode, "another process is training" in done.stderr) == (2, True)
    done = run_script(place, "train.py", "--resume", "latest", *QUIET)
    assert done.returncode == 0, done.stderr
    assert (place / "runs" / "latest").resolve().name == "first"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lr", "0.1"), "lr is 0.1, but the run began with 0.001"),
        (("--weights", "none"), "weights is none, but the run began with imagenet"),
        ((), "manifest_sha256 is"),
    ],
)
def test_a_resume_with_anything_else_is_refused(
    workplace: Path, place: Path, arguments: tuple[str, ...], said: str
) -> None:
    run = place / "runs" / "first"
    run.mkdir(parents=True)
    for name in ("last.pt", "history.jsonl", "config.yaml"):
        (run / name).write_bytes((workplace / "runs" / "first" / name).read_bytes())
    if not arguments:
        checkpoint = torch.load(run / "last.pt", weights_only=True)
        save_checkpoint(run / "last.pt", checkpoint | {"manifest_sha256": "another split's"})
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    done = run_script(place, "train.py", "--resume", "first", *QUIET, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_whose_history_lacks_epochs_is_not_gone_on_with(place: Path, workplace: Path) -> None:
    """Nor does a resume without a name begin a new run."""
    run = place / "runs" / "first"
    run.mkdir(parents=True)
    for name in ("last.pt", "config.yaml"):
        (run / name).write_bytes((workplace / "runs" / "first" / name).read_bytes())
    lines = (workplace / "runs" / "first" / "history.jsonl").read_text().splitlines(keepends=True)
    for damaged in (lines[:8], [*lines[:8], "rot\n", *lines[9:]]):
        (run / "history.jsonl").write_text("".join(damaged))
        done = run_script(place, "train.py", "--resume", "first", *QUIET)
        assert (done.returncode, "lacks some of the 20 epochs" in done.stderr) == (2, True)
        assert (run / "history.jsonl").read_text() == "".join(damaged)
    done = run_script(place, "train.py", "--resume", "", *LITE, *QUIET)
    assert (done.returncode, "no such run" in done.stderr) == (2, True)
    assert [path.name for path in (place / "runs").iterdir()] == ["first"]
