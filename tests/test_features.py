"""Each image passes the backbone once, and training on the result is the textbook's training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from fracture.cli import InputError
from fracture.config import Fit
from fracture.data.images import PREPROCESSING_VERSION, inspect, load_image
from fracture.data.manifest import Row, Split, read_split
from fracture.features.cache import FeatureCache, StoredFeatures
from fracture.features.extract import PASS_IMAGES, Recipe, cached_features, pick_device
from fracture.models.backbone import Backbone, Head, build_backbone, feature_width, find_weights
from split_dataset import assign_splits, read_rows, write_splits
from tests.conftest import soak
from train import shuffled, train_epoch

CPU = torch.device("cpu")
LITE = "efficientnet-lite0"
WIDTH = 1280  # of both EfficientNet-Lite0 and B0
RECIPE = Recipe(LITE, find_weights(LITE, "imagenet", 0), 64, "squash", "float32")


@pytest.fixture(scope="session")
def split_dir(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "split"
    rows = assign_splits(read_rows(drawn), (0.8, 0.1, 0.1), seed=42)
    write_splits({".": rows}, drawn, folder, "")
    return folder


@pytest.fixture
def split(split_dir: Path) -> Split:
    """Twenty images of the training split, no two with the same bytes."""
    whole = read_split(split_dir, "train")
    distinct = list({row.sha256: row for row in whole.rows}.values())
    return dataclasses.replace(whole, rows=distinct[:20])


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images in each batch that passes a backbone, but for the black ones that fill it up."""
    sizes: list[int] = []
    forward = Backbone.forward

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        sizes.append(int(images.flatten(1).any(1).sum()))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted)
    return sizes


def features_of(
    split: Split, cache: Path, recipe: Recipe = RECIPE
) -> tuple[torch.Tensor, list[Row], dict[Row, str]]:
    features, rows, unreadable = cached_features(split, recipe, cache, 0, CPU)
    return features[:], rows, unreadable


def copied(split: Split, folder: Path) -> Split:
    """The split with its files as copies of their own, so that a test may change them."""
    for row in split.rows:
        (folder / row.place).parent.mkdir(parents=True, exist_ok=True)
        (folder / row.place).write_bytes((split.folder / row.place).read_bytes())
    return dataclasses.replace(split, folder=folder)


def test_a_warm_cache_opens_no_image_and_runs_no_backbone(
    split: Split, tmp_path: Path, passed: list[int]
) -> None:
    cold, rows, _ = features_of(split, tmp_path)
    assert sum(passed) == len(split.rows) == 20
    passed.clear()
    nowhere = dataclasses.replace(split, folder=tmp_path / "nowhere")
    warm, warm_rows, unreadable = features_of(nowhere, tmp_path)
    assert passed == []
    assert unreadable == {}
    assert warm_rows == rows == split.rows
    assert torch.equal(warm, cold)


def test_only_new_images_pass_the_backbone(split: Split, tmp_path: Path, passed: list[int]) -> None:
    fewer = dataclasses.replace(split, rows=split.rows[1:])
    features_of(fewer, tmp_path)
    passed.clear()
    features_of(split, tmp_path)
    assert passed == [1]


def test_copies_pass_the_backbone_once(split: Split, tmp_path: Path, passed: list[int]) -> None:
    twice = dataclasses.replace(split, rows=[row for row in split.rows for _ in range(2)])
    features, _, _ = features_of(twice, tmp_path)
    assert sum(passed) == len(split.rows)
    assert torch.equal(features[::2], features[1::2])


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 96},
        {"fit": "letterbox"},
        pytest.param({"precision": "bfloat16"}, marks=soak),
        {"weights": find_weights(LITE, "none", 0)},
        {"weights": dataclasses.replace(RECIPE.weights, source="advprop")},
        {"backbone": "efficientnet-b0", "weights": find_weights("efficientnet-b0", "none", 0)},
    ],
)
def test_another_recipe_never_reads_these_features(
    split: Split, tmp_path: Path, passed: list[int], change: dict
) -> None:
    few = dataclasses.replace(split, rows=split.rows[:2])  # some processors crawl in bfloat16
    features_of(few, tmp_path)
    passed.clear()
    features_of(few, tmp_path, dataclasses.replace(RECIPE, **change))
    assert passed == [2]


def test_a_flipped_bit_is_noticed_and_mended(
    split: Split, tmp_path: Path, passed: list[int]
) -> None:
    whole, _, _ = features_of(split, tmp_path)
    file = FeatureCache(tmp_path, RECIPE.describe(), WIDTH).file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    passed.clear()
    mended, _, _ = features_of(split, tmp_path)
    assert passed == [1]
    torch.testing.assert_close(mended, whole, rtol=1e-4, atol=1e-4)
    passed.clear()
    features_of(split, tmp_path)
    assert passed == []


def test_a_torn_write_costs_its_own_image_only(
    split: Split, tmp_path: Path, passed: list[int]
) -> None:
    features_of(split, tmp_path)
    file = FeatureCache(tmp_path, RECIPE.describe(), WIDTH).file
    file.write_bytes(file.read_bytes()[:-100])
    passed.clear()
    features_of(split, tmp_path)
    features_of(split, tmp_path)
    assert passed == [1]


def test_unreadable_images_are_named_and_left_out(split: Split, tmp_path: Path) -> None:
    own = copied(split, tmp_path / "own")
    (own.folder / own.rows[3].place).write_bytes(b"no image")
    features, rows, unreadable = features_of(own, tmp_path / "cache")
    assert rows == [row for i, row in enumerate(split.rows) if i != 3]
    assert len(features) == len(rows)
    assert list(unreadable) == [split.rows[3]]
    assert unreadable[split.rows[3]] == "changed since the split was made"


def test_a_changed_image_leaves_the_cache_of_the_others_right(
    split: Split, tmp_path: Path, passed: list[int]
) -> None:
    """The cache is shared by all splits: under a digest lies the feature of those bytes only."""
    own = copied(split, tmp_path / "own")
    place, other = own.rows[0].place, own.rows[1].place
    (own.folder / place).write_bytes((own.folder / other).read_bytes())
    features_of(own, tmp_path / "shared")
    passed.clear()
    shared, _, _ = features_of(split, tmp_path / "shared")
    assert sum(passed) == 1
    fresh, _, _ = features_of(split, tmp_path / "fresh")
    torch.testing.assert_close(shared, fresh, rtol=1e-4, atol=1e-4)


def test_the_batch_size_of_the_pass_does_not_matter(
    split: Split, tmp_path: Path, passed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = features_of(split, tmp_path / "one")
    monkeypatch.setitem(PASS_IMAGES, "cpu", 1)
    parts, _, _ = features_of(split, tmp_path / "other")
    assert passed == [20, 12, 8]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_larger_images_pass_in_smaller_batches(
    split: Split, tmp_path: Path, passed: list[int]
) -> None:
    few = dataclasses.replace(split, rows=split.rows[:3])
    features_of(few, tmp_path, dataclasses.replace(RECIPE, image_size=640))
    assert passed == [1, 1, 1]


def test_features_that_are_no_numbers_stop_with_the_image_named(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Backbone.forward

    def overflowing(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        features = forward(self, images)
        features[5, 7] = np.inf
        return features

    monkeypatch.setattr(Backbone, "forward", overflowing)
    with pytest.raises(InputError, match=split.rows[5].place):
        features_of(split, tmp_path)
    assert not (tmp_path / "features.bin").exists()


@pytest.mark.parametrize(
    ("case", "images", "passes"),
    [
        ("cold", 20, 1),
        ("warm", 0, 0),
        ("one new image", 1, 1),
        ("one changed image", 1, 1),
        ("another backbone", 20, 1),
        ("another image size", 20, 1),
    ],
)
def test_nothing_is_computed_twice(
    split: Split, tmp_path: Path, passed: list[int], monkeypatch: pytest.MonkeyPatch, case: str,
    images: int, passes: int,
) -> None:  # fmt: skip
    """Counts of files decoded, batches passed and bytes written, beyond those of an earlier run."""
    decoded: list[int] = []

    def counted(content: bytes, size: int, fit: Fit) -> np.ndarray:
        decoded.append(size)
        return load_image(content, size, fit)

    monkeypatch.setattr("fracture.data.images.load_image", counted)
    own, cache, recipe = copied(split, tmp_path / "own"), tmp_path / "cache", RECIPE
    if case != "cold":
        earlier = own.rows[1:] if case == "one new image" else own.rows
        features_of(dataclasses.replace(own, rows=earlier), cache)
    if case == "one changed image":
        path = own.folder / own.rows[4].place
        Image.new("L", (300, 300), 77).save(path)
        own.rows[4] = dataclasses.replace(own.rows[4], sha256=inspect(path).sha256)
    if case == "another backbone":
        other = find_weights("efficientnet-b0", "none", 0)
        recipe = dataclasses.replace(RECIPE, backbone="efficientnet-b0", weights=other)
    if case == "another image size":
        recipe = dataclasses.replace(RECIPE, image_size=96)

    def size() -> int:
        return sum(path.stat().st_size for path in cache.rglob("features.bin"))

    before = size()
    decoded.clear()
    passed.clear()
    features_of(own, cache, recipe)
    assert (len(decoded), len(passed)) == (images, passes)
    assert size() - before == images * (4 + 32 + 4 * WIDTH)  # checksum, digest, vector


def test_the_cache_takes_four_bytes_a_number_and_five_percent_at_most(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {"backbone": "b6"}, 2304)
    cache.append([f"{i:064x}" for i in range(100)], np.ones((100, 2304), np.float32))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert size <= 1.05 * 4 * 2304 * 100


def test_any_rows_can_be_read_in_any_order(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {"backbone": "any"}, 3)
    vectors = np.arange(30, dtype=np.float32).reshape(10, 3)
    cache.append([f"{i:064x}" for i in range(10)], vectors)
    places = cache.find()
    stored = StoredFeatures(cache, torch.tensor([places[f"{i:064x}"] for i in (9, 2, 4)]))
    assert stored[:].tolist() == vectors[[9, 2, 4]].tolist()
    assert stored[torch.tensor([2, 0])].tolist() == vectors[[4, 9]].tolist()
    assert stored.subset(torch.tensor([False, True, True]))[:].tolist() == vectors[[2, 4]].tolist()
    assert (len(stored), stored.width, stored[:].dtype) == (3, 3, torch.float32)


def test_training_on_cached_features_is_the_textbook_loop_over_images(
    split: Split, tmp_path: Path, b6_weights: Path
) -> None:
    """EfficientNet-B6, random weights: same head weights, batch order and dropout, the same head.

    The textbook's loop decodes every image in every epoch and runs the whole network on it.
    """
    name, few = "efficientnet-b6", dataclasses.replace(split, rows=split.rows[:8])
    recipe = Recipe(name, find_weights(name, str(b6_weights), 0), 224, "squash", "float32")
    labels = torch.tensor([few.classes.index(row.label) for row in few.rows])
    epochs, batch_size = 2, 3

    features, _, _ = features_of(few, tmp_path, recipe)
    torch.manual_seed(7)
    ours = Head(feature_width(name), 0.5)
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.001)
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        train_epoch(ours, shuffled(features, labels, batch_size), optimizer)

    backbone = build_backbone(name, 224, recipe.weights)
    paths = [few.folder / row.place for row in few.rows]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.manual_seed(7)
    theirs = Head(feature_width(name), 0.5)
    start = theirs.linear.weight.clone()
    classifier = torch.nn.Sequential(backbone, theirs)
    optimizer = torch.optim.Adam((p for p in classifier.parameters() if p.requires_grad), lr=0.001)
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        classifier.train()
        for index in torch.randperm(len(labels)).split(batch_size):
            films = [load_image(paths[i].read_bytes(), 224, "squash") for i in index]
            optimizer.zero_grad()
            loss = cross_entropy(classifier(torch.from_numpy(np.stack(films))), labels[index])
            loss.backward()
            optimizer.step()

    assert (ours.linear.weight - start).abs().max() > 1e-3
    torch.testing.assert_close(ours.linear.weight, theirs.linear.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.linear.bias, theirs.linear.bias, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_what_a_vector_is_changes_only_with_the_preprocessing_version(tmp_path: Path) -> None:
    """Vectors kept on disk stay right only while the code that made them gives the same again."""
    x, y = np.meshgrid(np.arange(200), np.arange(300))
    (tmp_path / "train" / "F").mkdir(parents=True)
    film = tmp_path / "train" / "F" / "film.png"
    Image.fromarray((x * 0.5 + (y > 150) * 90).astype(np.uint8)).save(film)
    row = Row("images/F/film.png", "F", "train", "g", "", inspect(film).sha256)
    features, _, _ = features_of(Split(tmp_path, [row], ["F"], ""), tmp_path)
    top = features[0].topk(4)
    assert PREPROCESSING_VERSION == 1
    assert top.indices.tolist() == [17, 71, 1042, 869]
    assert top.values.tolist() == pytest.approx([3.9240, 3.8693, 3.8041, 3.2527], rel=1e-3)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    assert pick_device("auto", "auto") == (CPU, "float32")
    assert pick_device("cpu", "bfloat16") == (CPU, "bfloat16")
    with pytest.raises(InputError, match="allowed: auto, cpu"):
        pick_device("cuda", "auto")
