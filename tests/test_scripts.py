"""The three scripts, run as a person runs them: no terminal, no account, no network."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from fracture.data.manifest import read_split
from fracture.features.extract import Recipe, cached_features
from fracture.models.backbone import find_weights
from infer import restore
from tests.conftest import LITE, ROOT, run_script
from train import merit

FIGURES = ("accuracy", "sensitivity", "specificity", "ROC-AUC")


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
    assert (
        merit(better, "val_accuracy") > merit(lower, "val_accuracy") > merit(higher, "val_accuracy")
    )
    assert merit(lower, "val_loss") > merit(higher, "val_loss") > merit(better, "val_loss")


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
    printed = (workplace / "infer.py.txt").read_text().splitlines()
    figures = next(line for line in printed if any(name in line for name in FIGURES))
    assert figures.startswith("accuracy ")
    assert f" {right / len(test.rows):.3f} (" in figures
    assert f"test accuracy {right / len(test.rows):.4f}" in printed


def test_the_script_trains_the_protocol(workplace: Path) -> None:
    """Against the protocol written out here: only the training split, batches of 16, dropout 0.5,
    Adam at 0.001, 20 epochs seeded one by one, losses as means over images in eval mode."""
    split = read_split(workplace / "data" / "split", "train", "val")
    recipe = Recipe(LITE[1], find_weights(LITE[1], "imagenet", 42), 224, "squash", "float32")
    cpu = torch.device("cpu")
    features, rows, _ = cached_features(split, recipe, workplace / "cache", 0, cpu)
    x = {
        name: features[torch.tensor([row.split == name for row in rows])]
        for name in ("train", "val")
    }
    y = {
        name: torch.tensor([int(r.label == "Non_fractured") for r in rows if r.split == name])
        for name in ("train", "val")
    }
    torch.manual_seed(42)
    linear = torch.nn.Linear(1280, 2)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.001)
    for line in history(workplace, "first"):
        torch.manual_seed(42 + line["epoch"])
        losses = []
        for batch in torch.randperm(len(y["train"])).split(16):
            kept = torch.rand(len(batch), 1280) >= 0.5
            logits = linear(x["train"][batch] * kept * 2)
            loss = cross_entropy(logits, y["train"][batch], reduction="none")
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
            losses += loss.tolist()
        assert line["train_loss"] == pytest.approx(sum(losses) / len(y["train"]), rel=1e-3)
        assert line["val_loss"] == pytest.approx(
            cross_entropy(linear(x["val"]), y["val"]).item(), rel=1e-3
        )
    last = torch.load(workplace / "runs" / "first" / "last.pt", weights_only=True)["head"]
    torch.testing.assert_close(last["linear.weight"], linear.weight.detach(), rtol=1e-3, atol=1e-4)


def test_the_best_epoch_is_tested_not_the_last(workplace: Path) -> None:
    """A best.pt whose head always answers 0.9, beside the last.pt that was trained."""
    run = workplace / "runs" / "swapped"
    shutil.copytree(workplace / "runs" / "first", run)
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    checkpoint["head"]["linear.weight"].zero_()
    checkpoint["head"]["linear.bias"].copy_(torch.tensor([0.9, 0.1]).log())
    checkpoint["temperature"] = 1.0
    torch.save(checkpoint, run / "best.pt")
    assert run_script(workplace, "infer.py", "--run", "swapped").returncode == 0
    with (run / "test" / "predictions.csv").open() as file:
        predictions = [float(p["p_fractured"]) for p in csv.DictReader(file)]
    assert predictions == pytest.approx([0.9] * len(predictions))


def test_preprocessing_comes_from_the_checkpoint(workplace: Path) -> None:
    checkpoint = torch.load(workplace / "runs" / "first" / "best.pt", weights_only=True)
    checkpoint["recipe"] |= {"fit": "letterbox", "image_size": 96}
    recipe = restore(checkpoint, "imagenet", "float32").recipe
    assert (recipe.fit, recipe.image_size) == ("letterbox", 96)


@pytest.mark.parametrize(("positive", "p"), [("Fractured", 0.9), ("Non_fractured", 0.1)])
def test_the_positive_class_is_found_by_name(workplace: Path, positive: str, p: float) -> None:
    """A head that gives class 0, Fractured in alphabetical order, 0.9 whatever the image."""
    checkpoint = torch.load(workplace / "runs" / "first" / "best.pt", weights_only=True)
    checkpoint["positive_class"] = positive
    checkpoint["head"]["linear.weight"].zero_()
    checkpoint["head"]["linear.bias"].copy_(torch.tensor([0.9, 0.1]).log())
    checkpoint["temperature"] = 1.0
    model = restore(checkpoint, "imagenet", "float32")
    assert model.p_positive(torch.ones(1, 1280)) == pytest.approx([p])
    assert model.decide(p, "protocol") == "Fractured"


def test_an_offline_wandb_run_holds_every_epoch(workplace: Path) -> None:
    """Read back by wandb's own reader."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    offline = min((workplace / "runs" / "first" / "wandb").glob("offline-run-*"))
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
    assert "not an image" in only_bad.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("train.py", ("--split_dir", "nowhere"), "python split_dataset.py"),
        ("train.py", (*LITE, "--run", "first"), "no run overwrites another"),
        ("train.py", (*LITE, "--positive_class", "Broken"), "Non_fractured"),
        ("train.py", (), "efficientnet-b6-c76e70fd.pth and put it at"),
        ("train.py", (*LITE, "--wandb_mode", "online"), "wandb login"),
        ("infer.py", ("--run", "nobody"), "python train.py"),
        ("train.py", (*LITE, "--cache_dir", "train.py.txt"), "train.py.txt"),
        ("infer.py", ("nothing.jpg",), "no such file"),
        ("infer.py", ("--out", "table.csv"), "none is given"),
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
    assert not (workplace / "runs" / "random" / "wandb").exists()  # as it was trained
    metrics = json.loads((workplace / "runs" / "random" / "test" / "metrics.json").read_text())
    assert (metrics["backbone"], metrics["weights"]) == ("efficientnet-lite0", "none")


def test_a_run_is_tested_only_on_its_own_split_and_weights(workplace: Path, drawn: Path) -> None:
    other = ("--data_root", str(drawn), "--split_dir", "other", "--seed", "1")
    assert run_script(workplace, "split_dataset.py", *other).returncode == 0
    found = run_script(workplace, "infer.py", "--run", "first", "--split_dir", "other")
    assert "its own is data/split" in found.stdout
    for key, value, said in (
        ("manifest_sha256", "of another split", "neither data/split nor data/split"),
        ("recipe", {"weights": "sha256:of-other-weights"}, "sha256:of-other-weights"),
    ):
        checkpoint = torch.load(workplace / "runs" / "first" / "best.pt", weights_only=True)
        checkpoint[key] = checkpoint[key] | value if isinstance(value, dict) else value
        run = workplace / "runs" / f"other-{key}"
        run.mkdir()
        torch.save(checkpoint, run / "best.pt")
        refused = run_script(workplace, "infer.py", "--run", run.name)
        assert refused.returncode == 2
        assert said in refused.stderr


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_the_epochs_in_one_line_and_keeps_the_checkpoints(
    workplace: Path, sent: signal.Signals, status: int, said: str
) -> None:
    command = [sys.executable, "-u", str(ROOT / "train.py"), *LITE, "--run", said]
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--wandb_mode", "offline"],
        cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert any("    3  " in line for line in process.stdout)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, f"train.py: {said}\n")
    assert torch.load(workplace / "runs" / said / "last.pt", weights_only=True)["epoch"] >= 3


def test_a_reader_that_stops_reading_causes_no_traceback(workplace: Path) -> None:
    films = str(workplace / "data" / "split" / "test")
    command = f"{sys.executable} {ROOT / 'infer.py'} --run first {films} | head -1"
    done = subprocess.run(
        command, shell=True, cwd=workplace, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
