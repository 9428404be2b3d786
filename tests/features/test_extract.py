"""Each image passes the backbone once, and training on the result is the textbook's training."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import train
from fracture.cli import InputError
from fracture.data.images import PREPROCESSING_VERSION, ImageFiles, load_or_explain
from fracture.data.split_folder import SplitFolder
from fracture.features import extract
from fracture.features.extract import Compute, FeatureSet, cached_features
from fracture.models.backbone import Backbone, FeatureSpec
from fracture.models.head import build_head
from fracture.models.weights import find_weights
from fracture.training import minibatches, train_epoch
from tests.conftest import LITE, ROOT, Capture, Patch

SPEC = FeatureSpec(LITE[1], find_weights(LITE[1], "imagenet", 0), 64, "squash", "float32")
CPU = Compute(torch.device("cpu"), "float32", 0)


@pytest.fixture
def folder(project: Path, monkeypatch: Patch) -> SplitFolder:
    """The drawn training images; 12 pass at a time."""
    monkeypatch.setitem(extract.FEATURE_BATCH, "cpu", 1)
    return SplitFolder(project / "data" / "split", "train", 64, "squash")


@pytest.fixture
def passed(monkeypatch: Patch) -> list[int]:
    """The images of each batch, but for the black ones that fill it up."""
    counts: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 12  # another shape might add up in another order
        counts.append(int(images.flatten(1).any(1).sum()))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    return counts


def features_of(folder: SplitFolder, cache: Path) -> FeatureSet:
    return cached_features([folder], SPEC, cache, CPU)[0]


def refuse(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_pass_goes_on_with_any_workers_and_ends_in_the_same_bits(
    folder: SplitFolder, tmp_path: Path, passed: list[int], monkeypatch: Patch
) -> None:
    whole, load = features_of(folder, tmp_path / "whole"), SplitFolder.__getitem__
    batches = [min(12, len(folder) - i) for i in range(0, len(folder), 12)]
    assert passed == batches
    passed.clear()
    assert (whole.rows, whole.labels.tolist()) == (folder.rows, folder.targets)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(SplitFolder, "__getitem__", lambda s, i: load(s, i) if i < 15 else refuse())
        features_of(folder, tmp_path / "parts")
    twice, workers = [folder, folder], replace(CPU, workers=2)  # copies pass once
    parts = cached_features(twice, SPEC, tmp_path / "parts", workers)
    assert passed == batches
    passed.clear()
    (file,) = (tmp_path / "parts").rglob("features.bin")
    file.write_bytes(file.read_bytes()[:-1])  # one image has to pass again, alone
    parts += cached_features(twice, SPEC, tmp_path / "parts", CPU)
    assert passed == [1]
    monkeypatch.setattr(SplitFolder, "__getitem__", refuse)
    monkeypatch.setattr(FeatureSpec, "build", refuse)
    parts += cached_features(twice, SPEC, tmp_path / "parts", CPU)
    assert all(torch.equal(whole.features, part.features) for part in parts)


def test_a_changed_image_is_left_out_by_name_and_never_kept_as_another(
    folder: SplitFolder, tmp_path: Path, capsys: Capture
) -> None:
    path, row = Path(folder.samples[3][0]), folder.rows[3]
    content = path.read_bytes()
    path.unlink()  # a hard link: the source stays as it is
    path.write_bytes(Path(folder.samples[0][0]).read_bytes())
    found = features_of(folder, tmp_path)
    path.write_bytes(content)
    assert found.unreadable == {row: "changed since the split was made"}
    assert f"left out, unreadable: {row.image}: changed" in capsys.readouterr().out
    assert found.rows == [other for other in folder.rows if other != row]
    mended = features_of(folder, tmp_path)
    fresh = features_of(folder, tmp_path / "fresh")
    torch.testing.assert_close(mended.features, fresh.features, rtol=1e-4, atol=1e-4)


def test_features_that_are_not_finite_are_refused_by_name_and_not_kept(
    folder: SplitFolder, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Backbone, "forward", lambda _, x: torch.full((len(x), 1280), torch.inf))
    with pytest.raises(InputError, match=f"^{folder.rows[0].path}: features are not finite; try"):
        features_of(folder, tmp_path)
    assert not [*tmp_path.rglob("features.bin")]


def test_batches_come_in_order_with_reasons(folder: SplitFolder) -> None:
    paths = [Path(path) for path, _ in folder.samples[:26]]
    paths[13] = Path(train.__file__)
    images, good = ImageFiles(paths, 64, "squash"), [i for i in range(26) if i != 13]
    batches = extract.run_batches(lambda x: x.float().mean((1, 2)), images, 64, CPU, "decode")
    positions, outputs, reasons = zip(*batches, strict=True)
    assert [len(part) for part in positions] == [12, 11, 2]
    assert np.concatenate(positions).tolist() == good
    expected = [images[i][0].float().mean().item() for i in good]
    assert np.concatenate(outputs) == pytest.approx(expected)
    assert reasons == ({}, {13: "not an image"}, {})


def test_two_processes_of_torchrun_make_the_features_and_the_head_of_one(project: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--", str(ROOT / "train.py"), *LITE, "--run", "two", "--cache_dir", "two"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("features, squash-224: ") == done.stdout.count("next: ") == 1
    runs = [project / "runs" / name for name in ("first", "two")]
    one, two = (torch.load(run / "last.pt", weights_only=True)["head"] for run in runs)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert len({(run / "history.jsonl").read_text() for run in runs}) == 1
    kept = [next((project / name).rglob("features.bin")).read_bytes() for name in ("cache", "two")]
    records = [{part[i : i + 5156] for i in range(0, len(part), 5156)} for part in kept]
    assert records[1] <= records[0]  # which has the test images too
    assert len(kept[1]) == len(records[1]) * 5156  # none is kept twice


def test_training_on_cached_features_is_the_textbook_loop_over_images(
    folder: SplitFolder, tmp_path: Path, b6_weights: Path
) -> None:
    """EfficientNet-B6: the loop runs the whole network on every image in every epoch."""
    weights = find_weights("efficientnet-b6", str(b6_weights), 0)
    spec = replace(SPEC, backbone="efficientnet-b6", weights=weights, image_size=224)
    folder.samples, folder.rows = (part[:4] + part[-4:] for part in (folder.samples, folder.rows))
    folder.size, heads = 224, []
    images = torch.stack([folder[i][0] for i in range(8)])
    cached = cached_features([folder], spec, tmp_path, CPU)[0]
    whole = spec.build(CPU.device)
    for inputs, network in ((cached.features, torch.nn.Identity()), (images, whole)):
        torch.manual_seed(7)
        heads.append(build_head(2304, 0.5))
        start = torch.cat([p.flatten() for p in heads[-1].parameters()])
        classifier = torch.nn.Sequential(network, heads[-1])
        optimizer = torch.optim.Adam(heads[-1].parameters(), lr=0.001)
        for epoch in (1, 2):
            torch.manual_seed(epoch)
            batches = minibatches(inputs, cached.labels, 3)
            train_epoch(classifier, batches, cross_entropy, optimizer)
    ours, theirs = (torch.cat([p.flatten() for p in head.parameters()]) for head in heads)
    assert (ours - start).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_a_vector_is_changes_only_with_the_preprocessing_version(tmp_path: Path) -> None:
    """Vectors kept on disk stay right only while the code that made them gives the same again."""
    x, y = np.meshgrid(np.arange(200), np.arange(300))
    Image.fromarray((x * 0.5 + (y > 150) * 90).astype(np.uint8)).save(tmp_path / "film.png")
    film, _ = load_or_explain(tmp_path / "film.png", 64, "squash")
    top = SPEC.build(CPU.device)(film[None])[0].topk(4)
    assert PREPROCESSING_VERSION == 1
    assert top.indices.tolist() == [17, 71, 1042, 869]
    assert top.values.tolist() == pytest.approx([3.9240, 3.8693, 3.8041, 3.2527], rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_auto_takes_what_the_machine_has(monkeypatch: Patch) -> None:
    config = train.arguments([])[0]
    monkeypatch.setattr(extract, "cpu_count", lambda: 64)
    assert extract.pick_compute(config) == Compute(CPU.device, "float32", 16)
    monkeypatch.setattr(extract, "WORLD_SIZE", 8)
    chosen = replace(config, device="cpu", precision="bfloat16")
    assert extract.pick_compute(chosen) == Compute(CPU.device, "bfloat16", 8)
    with pytest.raises(InputError, match="allowed: auto, cpu"):
        extract.pick_compute(replace(config, device="cuda"))


def test_views_are_joined_or_averaged_and_each_passes_once(
    project: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = SplitFolder(project / "data" / "split", "test", 64, "squash")
    alone = SPEC, replace(SPEC, mirror=True), replace(SPEC, image_size=128, fit="letterbox")
    first, mirrored, large = (cached_features([folder], s, tmp_path, CPU)[0] for s in alone)
    flipped = SPEC.build(CPU.device)(folder[0][0][None].flip(2))
    assert torch.allclose(mirrored.features[0], flipped[0], atol=1e-5)
    views = ["squash-064-mirror", "letterbox-128"]
    capsys.readouterr()
    joined, averaged = (
        cached_features([folder], SPEC.with_views(views, average), tmp_path, CPU)[0].features
        for average in (False, True)
    )
    assert capsys.readouterr().out.count(" 0 not in ") == 6
    each = [first.features, mirrored.features, large.features]
    assert torch.equal(joined, torch.cat(each, 1))
    assert torch.equal(averaged, torch.stack(each).mean(0))
