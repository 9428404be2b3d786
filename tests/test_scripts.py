"""The three scripts, run as a person runs them: no terminal, no account, no network."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fracture.manifest import read_split
from infer import restore
from tests.conftest import run_script
from train import rank

LITE = ("--backbone", "efficientnet-lite0")


@pytest.fixture(scope="session")
def workplace(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the drawn data was split, a run trained with defaults, and tested."""
    folder = tmp_path_factory.mktemp("workplace")
    for name, *arguments in (
        ("split_dataset.py", "--data_root", str(drawn)),
        ("train.py", *LITE, "--run", "first"),
        ("infer.py",),
    ):
        done = run_script(folder, name, *arguments)
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.txt").write_text(done.stdout)
    return folder


def history(folder: Path, run: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs" / run / "history.jsonl").open()]


def test_a_run_leaves_settings_history_and_checkpoints(workplace: Path) -> None:
    run = workplace / "runs" / "first"
    assert yaml.safe_load((run / "config.yaml").read_text())["backbone"] == "efficientnet-lite0"
    assert [line["epoch"] for line in history(workplace, "first")] == list(range(1, 21))
    assert (workplace / "runs" / "latest").resolve() == run
    best, last = (torch.load(run / name, weights_only=True) for name in ("best.pt", "last.pt"))
    top = max(history(workplace, "first"), key=lambda h: (h["val_accuracy"], -h["val_loss"]))
    assert best["epoch"] == top["epoch"]
    assert best["best"]["val_accuracy"] == top["val_accuracy"]
    assert last["epoch"] == 20
    assert best["classes"][0] == best["positive_class"] == "Fractured"


def test_equal_accuracy_goes_to_the_lower_loss() -> None:
    lower, higher = ({"val_accuracy": 0.9, "val_loss": loss} for loss in (0.2, 0.3))
    better = {"val_accuracy": 0.91, "val_loss": 0.5}
    assert rank(better, "val_accuracy") > rank(lower, "val_accuracy") > rank(higher, "val_accuracy")
    assert rank(lower, "val_loss") > rank(higher, "val_loss") > rank(better, "val_loss")


def test_the_test_accuracy_is_printed_first_and_is_that_of_the_predictions(workplace: Path) -> None:
    results = workplace / "runs" / "first" / "test"
    metrics = json.loads((results / "metrics.json").read_text())
    with (results / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    test = read_split(workplace / "data" / "split", "test")
    assert {(p["image"], p["label"]) for p in predictions} == {
        (r.image, r.label) for r in test.rows
    }
    right = sum(p["label"] == p["predicted"] for p in predictions)
    assert metrics["accuracy"]["value"] == right / len(test.rows)
    assert metrics["accuracy"]["n"] == len(test.rows)
    assert all(
        (float(p["p_fractured"]) >= 0.5) == (p["predicted"] == "Fractured") for p in predictions
    )
    figures = [
        line for line in (workplace / "infer.py.txt").read_text().splitlines() if " n " in line
    ]
    assert figures[0].startswith(f"test accuracy    {right / len(test.rows):.4f}")


@pytest.mark.parametrize(("positive", "p"), [("Fractured", 0.9), ("Non_fractured", 0.1)])
def test_the_positive_class_is_found_by_name(workplace: Path, positive: str, p: float) -> None:
    """A head that gives class 0, Fractured in alphabetical order, 0.9 whatever the image."""
    checkpoint = torch.load(workplace / "runs" / "first" / "best.pt", weights_only=True)
    checkpoint["positive_class"] = positive
    checkpoint["head"]["linear.weight"].zero_()
    checkpoint["head"]["linear.bias"].copy_(torch.tensor([0.9, 0.1]).log())
    model = restore(checkpoint, "imagenet", "float32")
    assert model.p_positive(torch.ones(1, 1280)) == pytest.approx([p])
    assert model.decide(p) == "Fractured"


def test_an_offline_wandb_run_holds_every_epoch(workplace: Path) -> None:
    """Read back by wandb's own reader."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    offline = next((workplace / "runs" / "first" / "wandb").glob("offline-run-*"))
    read = subprocess.run([*command, str(offline)], capture_output=True, text=True, check=True)
    records = [json.loads(line) for line in read.stdout.splitlines()]
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    keys = ("epoch", "train_loss", "val_loss", "val_accuracy")
    assert len(logged) == 20
    assert [[line[k] for k in keys] for line in logged] == [
        pytest.approx([line[k] for k in keys]) for line in history(workplace, "first")
    ]


def test_a_second_run_touches_no_image_and_repeats_the_first(workplace: Path) -> None:
    """Every image of the split is made unreadable: with a warm cache nobody notices."""
    split = workplace / "data" / "split"
    names = [path for name in ("train", "val") for path in (split / name).glob("*/*")]
    kept = {path: path.read_bytes() for path in names}
    try:
        for path in names:
            path.unlink()  # a hard link: the source stays as it is
            path.touch()
        done = run_script(workplace, "train.py", *LITE, "--run", "second")
        other = run_script(workplace, "train.py", *LITE, "--run", "third", "--lr", "3e-4")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        (workplace / "runs" / "latest").unlink()
        (workplace / "runs" / "latest").symlink_to("first")
    assert done.returncode == other.returncode == 0
    assert "unreadable" not in done.stdout
    assert history(workplace, "second") == history(workplace, "first")
    assert history(workplace, "third") != history(workplace, "first")


def test_files_are_predicted_in_order_and_bad_ones_stop_nothing(workplace: Path) -> None:
    films = sorted((workplace / "data" / "split" / "test").glob("*/*"))[:3]
    (workplace / "bad.jpg").write_text("no image")
    done = run_script(workplace, "infer.py", str(films[0]), "bad.jpg", str(films[1]), str(films[2]))
    assert done.returncode == 0
    lines = done.stdout.splitlines()[-4:]
    assert [
        str(film) in line
        for film, line in zip((films[0], films[1], films[2]), (lines[0], *lines[2:]), strict=True)
    ] == [True] * 3
    assert "unreadable" in lines[1]
    with (workplace / "runs" / "first" / "test" / "predictions.csv").open() as file:
        known = {Path(p["image"]).name: float(p["p_fractured"]) for p in csv.DictReader(file)}
    assert float(lines[0].split()[0]) == pytest.approx(known[films[0].name], abs=1e-3)
    only_bad = run_script(workplace, "infer.py", "bad.jpg")
    assert only_bad.returncode == 2
    assert "cannot identify" in only_bad.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("train.py", ("--split_dir", "nowhere"), "python split_dataset.py"),
        ("train.py", (*LITE, "--run", "first"), "no run overwrites another"),
        ("train.py", (*LITE, "--positive_class", "Broken"), "Non_fractured"),
        ("train.py", (), "efficientnet-b6-c76e70fd.pth and put it at"),
        ("train.py", (*LITE, "--wandb_mode", "online"), "wandb login"),
        ("infer.py", ("--run", "nobody"), "python train.py"),
        ("infer.py", ("nothing.jpg",), "no such file"),
        ("split_dataset.py", ("--split_dir", "new", "--data_root", "nowhere"), "--data_root"),
    ],
)
def test_wrong_input_ends_in_one_line_and_status_2(
    workplace: Path, script: str, arguments: tuple[str, ...], said: str
) -> None:
    runs = sorted((workplace / "runs").iterdir())
    # Nothing listens on port 9: an address that cannot be reached, as where there is no network.
    done = run_script(workplace, script, *arguments, https_proxy="http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{script}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted((workplace / "runs").iterdir()) == runs


def test_random_weights_are_never_used_in_silence(workplace: Path) -> None:
    done = run_script(
        workplace, "train.py", *LITE, "--weights", "none", "--run", "random", "--image_size", "32",
        "--epochs", "1", "--wandb_mode", "disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout.splitlines()[0]
    tested = run_script(workplace, "infer.py", "--run", "random")
    assert tested.returncode == 0, tested.stderr
    metrics = json.loads((workplace / "runs" / "random" / "test" / "metrics.json").read_text())
    assert (metrics["backbone"], metrics["weights"]) == ("efficientnet-lite0", "none")


def test_a_run_is_tested_only_on_its_own_split_and_weights(workplace: Path, drawn: Path) -> None:
    run_script(
        workplace,
        "split_dataset.py",
        "--data_root",
        str(drawn),
        "--split_dir",
        "other",
        "--seed",
        "1",
    )
    refused = run_script(workplace, "infer.py", "--run", "first", "--split_dir", "other")
    assert refused.returncode == 2
    assert "--split_dir data/split" in refused.stderr
    checkpoint = workplace / "runs" / "first" / "best.pt"
    content = torch.load(checkpoint, weights_only=True)
    content["recipe"]["weights"] = "sha256:of-other-weights"
    (workplace / "runs" / "tampered").mkdir()
    torch.save(content, workplace / "runs" / "tampered" / "best.pt")
    refused = run_script(workplace, "infer.py", "--run", "tampered")
    assert refused.returncode == 2
    assert "sha256:of-other-weights" in refused.stderr
