"""finetune.py: trained, interrupted, resumed, tested, and its marks shown."""

import importlib
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
import infer
from fracture.data import boxes
from fracture.data.manifest import source_of
from fracture.models.backbone import configured_spec
from fracture.models.detector import Detector
from fracture.runs.checkpoint import load_checkpoint
from fracture.runs.trained import load_trained, start_from
from tests.conftest import Capture, Patch, forget_the_project, fork, run_expecting_error

SMALL = ("--image_size", "64", "--epochs", "2")


@pytest.fixture(scope="module")
def tuned(trained_project: Path) -> Path:
    """The trained project with a second run, "tuned"."""
    before = Path.cwd()
    os.chdir(trained_project)
    finetune.main([*SMALL, "--run", "tuned"])
    infer.main(["--run", "tuned"])
    os.chdir(before)
    return trained_project


@pytest.fixture
def place(tuned: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(tuned)
    return tuned


def weights_of(run: str, name: str = "best.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path("runs", run, name))["head"]


@pytest.mark.usefixtures("place")
def test_an_interrupted_run_resumes_to_the_same_bits(monkeypatch: Patch) -> None:
    begun, train_epoch = [], finetune.train_epoch

    def interrupt(*args: object) -> float:
        begun.append(args)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return train_epoch(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune, "train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finetune.main([*SMALL, "--run", "cut"])
    finetune.main(["--resume", "cut"])
    cut, whole = (load_checkpoint(Path("runs", run, "last.pt")) for run in ("cut", "tuned"))
    for part in ("head", "network"):
        assert all(torch.equal(cut[part][key], value) for key, value in whole[part].items())
    assert str(cut["optimizer"]) == str(whole["optimizer"])
    assert cut["schedule"] == whole["schedule"]
    histories = [Path("runs", run, "history.jsonl").read_text() for run in ("cut", "tuned")]
    assert histories[0] == histories[1]


def test_a_test_has_figures_marks_and_a_report(place: Path, capsys: Capture) -> None:
    test = place / "runs/tuned/test"
    results = json.loads((test / "metrics.json").read_text())
    assert results["localisation"]["froc"]["sensitivity"]["0.5"]["n"] >= 1
    assert "Fracture maps" in (test / "report.html").read_text()
    infer.main(["--compare", "tuned", "first"])
    assert "McNemar" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_a_table_of_files_carries_marks_in_pixels_of_the_film(capsys: Capture) -> None:
    infer.main(
        ["--run=tuned", "data/split/train", "--out=t.json", "--heatmaps=h", "--at=sensitivity90"]
    )
    rows = json.loads(Path("t.json").read_text())
    assert [bool(row["marks"]) for row in rows] == [row["decision"] == "Fractured" for row in rows]
    for row in rows:
        size = Image.open(row["file"]).size
        for left, top, right, low in (mark["box"] for mark in row["marks"]):
            assert 0 <= left < right <= size[0]
            assert 0 <= top < low <= size[1]
    assert len([*Path("h").iterdir()]) == len(rows)
    marked = next(row for row in rows if row["marks"])
    shown = " ".join(map(str, marked["marks"][0]["box"]))
    assert f"{marked['file']}  marks {shown}" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_the_features_of_a_run_are_its_networks_outputs() -> None:
    classifier = load_trained(infer.arguments(["--run", "tuned"])[0], "float32").classifier
    network = classifier.spec.build(torch.device("cpu"))
    images = torch.randint(0, 255, (2, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        features, heat, _ = classifier.explain(network, images)
        turned = network(images.flip(2))
    assert (features.shape, heat.shape) == ((2, 2 + 4 * 4), (2, 4, 4))
    torch.testing.assert_close(features[:, :2], turned[:, :2])  # averaged over the mirror image
    torch.testing.assert_close(heat.flip(2).flatten(1), turned[:, 2:])


@pytest.mark.usefixtures("place")
def test_the_frozen_share_of_the_layers_keeps_its_weights_and_the_others_learn() -> None:
    config, _ = finetune.arguments([*SMALL])
    spec = configured_spec(config, "float32")
    before = Detector(spec, 0, 0.5, True, True).backbone.state_dict()
    after = {name.removeprefix("backbone."): w for name, w in weights_of("tuned").items()}
    kept = [torch.equal(weight, after[name]) for name, weight in before.items()]
    last = [*before].index("network._blocks.4._project_conv.bias")  # layer 15 of 49
    assert kept == [True] * (last + 1) + [False] * (len(kept) - last - 1)


@pytest.mark.usefixtures("place")
def test_init_starts_from_all_weights_of_a_run_or_from_its_head(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, _ = finetune.arguments([*SMALL])
    spec = load_trained(config, "float32").classifier.spec
    network = Detector(spec, 0, 0.5, True, True)
    origin = {"manifest_sha256": "another"}
    start_from("tuned", network, origin)
    assert all(torch.equal(v, weights_of("tuned")[k]) for k, v in network.state_dict().items())
    assert capsys.readouterr().out.endswith("trained on its test films\n")
    start_from("first", network, origin)
    assert torch.equal(
        network.head.get_parameter("linear.weight"), weights_of("first")["linear.weight"]
    )
    line = run_expecting_error(
        finetune.main, *SMALL, "--init", "first", "--backbone=efficientnet-b0", "--weights=none"
    )
    assert line == "--init: runs/first holds another network: its backbone is efficientnet-lite0"


@pytest.mark.usefixtures("place")
def test_a_run_that_started_from_another_split_says_so_when_tested() -> None:
    run = load_trained(infer.arguments(["--run", "tuned"])[0], "float32")
    assert "caution" not in run.metadata()["provenance"]
    own = run.checkpoint["manifest_sha256"]
    for splits, cautioned in (([own], False), (["another"], True), (["another", own], True)):
        mixed = replace(run, checkpoint=run.checkpoint | {"earlier_splits": splits})
        assert ("caution" in mixed.metadata()["provenance"]) == cautioned, splits


def test_marks_on_a_fractured_film_without_boxes_are_not_false(place: Path) -> None:
    file = source_of(place / "data/split") / boxes.FILE
    before, films = file.read_text(), Path("runs/tuned/test/films.json")
    first, *others = [film for film in json.loads(films.read_text()) if film["boxes"]]
    coco = json.loads(before)
    name = Path(first["image"]).name
    (image,) = (image["id"] for image in coco["images"] if image["file_name"] == name)
    coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] != image]
    file.write_text(json.dumps(coco))
    infer.main(["--run", "tuned"])
    found = json.loads(films.read_text())
    assert [film for film in found if film["boxes"]] == others
    assert first["image"] not in {film["image"] for film in found}
    file.write_text(before)


@pytest.mark.parametrize("films", [20, 3147])
def test_the_learning_rate_rises_to_lr_and_falls_to_0(films: int) -> None:
    config, _ = finetune.arguments(["--epochs=3"])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], config.lr)
    schedule, rates = finetune.build_schedule(optimizer, config, films), []
    for _ in range(3 * math.ceil(films / config.batch_size)):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(config.lr, rel=0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


@pytest.mark.usefixtures("place")
def test_views_in_a_file_are_refused_as_a_setting_of_train_py() -> None:
    Path("views.yaml").write_text("views: [squash-128]")
    argv = [*SMALL, "--config", "views.yaml", "--run", "seen"]
    line = run_expecting_error(finetune.main, *argv)
    assert line.startswith("views is a setting of train.py;")
    assert not Path("runs/seen").exists()


def test_data_without_boxes_are_trained_on_with_box_weight_0(place: Path, tmp_path: Path) -> None:
    config = place / "data/split/config.yaml"
    before = config.read_text()
    config.write_text(f"data_root: {tmp_path}\n")
    line = run_expecting_error(finetune.main, *SMALL, "--run", "none")
    assert (
        line == f"{tmp_path}: no boxes of the training films in {boxes.FILE}; pass --box_weight 0"
    )
    assert not Path("runs/none").exists()
    finetune.main([*SMALL, "--box_weight", "0", "--epochs", "1", "--run", "none"])
    infer.main(["--run", "none"])
    assert json.loads(Path("runs/none/test/metrics.json").read_text())["localisation"] is None
    config.write_text(before)


def train_as_one_of_two(place: Path, store: str, rank: int, arguments: list[str]) -> None:
    os.chdir(place)
    os.environ.update(RANK=f"{rank}", WORLD_SIZE="2")  # as torchrun does
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    forget_the_project()
    importlib.import_module("finetune").main(arguments)


def test_two_processes_average_the_gradient_of_one_on_the_joint_batch(
    place: Path, tmp_path: Path
) -> None:
    """One step over the whole training set; AdamW's first moment is a tenth of the gradient."""
    one_step = ["--image_size", "64", "--epochs", "1", "--batch_size", "1000", "--clip", "1e9"]
    one_step += ["--dropout", "0"]  # its draws differ
    finetune.main([*one_step, "--run", "one"])
    two = [*one_step, "--run", "two"]

    folders = [tmp_path / f"rank {rank}" for rank in (0, 1)]
    processes = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        processes.append(fork(folder, train_as_one_of_two, place, f"{tmp_path}/store", rank, two))
    for process, folder in zip(processes, folders, strict=True):
        process.join(120)
        assert process.exitcode == 0, (folder / "errors.txt").read_text()
    said = [(folder / "output.txt").read_text().count("next: ") for folder in folders]
    assert said == [1, 0]
    runs = [
        load_checkpoint(Path("runs", run, "last.pt"))["optimizer"]["state"]
        for run in ("one", "two")
    ]
    gradients = [np.concatenate([s["exp_avg"].ravel() for s in run.values()]) for run in runs]
    assert np.abs(gradients[0] - gradients[1]).max() < 1e-4 * np.abs(gradients[0]).max()
