"""SIGKILL at random moments, REPEATS times each: nothing is lost, and nothing is half there."""

import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import finetune
import infer
import split_dataset
import train
from fracture.data.manifest import SPLITS
from fracture.data.split_folder import SplitFolder
from fracture.runs.checkpoint import load_checkpoint
from tests.conftest import LITE, REPEATS, files_in, kill, slow
from tests.faults.conftest import results

RECORD = 4 + 32 + 4 * 1280  # bytes in a cache of EfficientNet-Lite0's features


@pytest.fixture
def kills(place: Path, record_property: Callable) -> Callable[..., Iterator]:
    """Kills a command soon after its work has begun, then lets the test look, and counts."""

    def run(what: str, longest: float, has_begun: Callable, command: list[str]) -> Iterator[None]:
        rng, survived = random.Random(what), 0
        for _ in range(REPEATS):
            survived += kill(place, rng.uniform(0, longest), has_begun, *command)
            yield
        record_property(f"kills survived in {what}", survived)

    return run


def test_a_killed_pass_computes_no_image_twice(place: Path, kills: Callable, capsys: Any) -> None:
    command = ["train.py", *LITE, "--cache_dir", "new", "--image_size", "192", "--epochs", "1"]

    def cached() -> bytes:
        content = b"".join(path.read_bytes() for path in place.glob("new/*/features.bin"))
        return content[: len(content) // RECORD * RECORD]

    for _ in kills("the pass", 0.3, cached, command):
        kept = cached()
        train.main(command[1:])
        printed = re.findall(r"(\d+) different images, (\d+) not in new", capsys.readouterr().out)
        assert int(printed[0][1]) == int(printed[0][0]) - len(kept) // RECORD
        assert cached().startswith(kept)
        train.main(command[1:])
        assert ", 0 not in new" in capsys.readouterr().out
        shutil.rmtree("new")


def plain(value: Any) -> Any:
    """A checkpoint that `==` compares: tensors as bytes, without the run's name."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "run"}
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


@pytest.mark.usefixtures("place")
def test_a_killed_run_resumes_to_the_same_bits(kills: Callable) -> None:
    """Killed again and again within its epochs, which write checkpoints every few milliseconds."""
    rng, whole, killed, goal = random.Random(1), Path("runs/whole"), Path("runs/killed"), 1
    command = ["train.py", *LITE, "--epochs", str(40 + 40 * REPEATS), "--run", "whole"]
    train.main(command[1:])
    command[-1] = "killed"

    def has_begun() -> bool:
        history = killed / "history.jsonl"
        return history.exists() and history.read_text().count("\n") >= goal

    for _ in kills("epochs and checkpoints", 0.02, has_begun, command):
        goal += rng.randint(1, 40)
        command[1:] = ["--resume", "killed"]
    train.main(command[1:])
    assert (killed / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()
    for name in ("best.pt", "last.pt"):  # head, optimizer, temperature, thresholds
        one, two = (plain(load_checkpoint(run / name)) for run in (whole, killed))
        assert one == two


@slow
@pytest.mark.usefixtures("place")
def test_a_killed_finetuning_resumes_to_the_same_bits(kills: Callable) -> None:
    small, killed = ["--image_size", "64", "--epochs", str(2 + 2 * REPEATS)], Path("runs/killed")
    finetune.main([*small, "--run", "whole"])
    command, goal = ["finetune.py", *small, "--run", "killed"], 1

    def has_begun() -> bool:
        history = killed / "history.jsonl"
        return history.exists() and history.read_text().count("\n") >= goal

    for _ in kills("finetune.py", 1, has_begun, command):
        goal += 2
        command[1:] = ["--resume", "killed"]
    finetune.main(command[1:])
    for name in ("best.pt", "last.pt"):
        one, two = (plain(load_checkpoint(run / name)) for run in (Path("runs/whole"), killed))
        assert one == two


def test_a_killed_test_loses_no_results(place: Path, trained_project: Path, kills: Any) -> None:
    test, stage = place / "runs/first/test", place / "runs/first/.test.new"
    for _ in kills("infer.py", 2.5, (stage / "work").exists, ["infer.py", "--run", "first"]):
        assert test.exists() or (stage / "old").exists()
        assert not test.exists() or results(place) == results(trained_project)
    shutil.rmtree(test, ignore_errors=True)
    infer.main(["--run", "first"])
    assert results(place) == results(trained_project)
    assert not stage.exists()


@pytest.mark.parametrize(
    ("what", "longest", "begun"),
    [("split_dataset.py", 0.03, ".split.new"), ("the download", 0.4, "")],
)
def test_a_killed_download_or_split_is_not_taken_for_a_whole_one(
    place: Path, drawn: Path, kills: Callable, what: str, longest: float, begun: str
) -> None:
    shutil.make_archive("archive", "zip", drawn.parent, drawn.name)
    digest, got = md5(Path("archive.zip").read_bytes()).hexdigest(), place / "got"
    command = ["split_dataset.py", "--data_root=got/FracAtlas", "--split_dir=got/split", "--force"]
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/archive.zip"
        command += ["--download", "--data_url", url, "--data_md5", digest]
        has_begun = lambda: (got / begun).exists() or (got / "split").exists()  # noqa: E731
        for _ in kills(what, longest, has_begun, command):
            if (archive := got / "FracAtlas.zip").exists():
                assert md5(archive.read_bytes()).hexdigest() == digest
            if (got / "split").exists():
                for part in SPLITS:
                    SplitFolder(got / "split", part, 32, "squash")  # refuses missing files
            if (got / "FracAtlas").exists():
                assert files_in(got / "FracAtlas/FracAtlas") == files_in(drawn)
                shutil.rmtree(got)
        split_dataset.main(command[1:])
        server.shutdown()
    assert {path.name for path in got.iterdir()} == {"FracAtlas", "FracAtlas.zip", "split"}
    assert files_in(got / "FracAtlas/FracAtlas") == files_in(drawn)
    assert (got / "split/manifest.csv").read_text() == Path("data/split/manifest.csv").read_text()
