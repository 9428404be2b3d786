"""A flipped bit is noticed, or lies where nothing is read from: never a wrong number."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fracture.cli import InputError
from fracture.data.manifest import CHECKSUM, FILE_NAME, read_manifest
from fracture.features.cache import FeatureCache
from fracture.models.weights import load_tensors
from tests.conftest import REPEATS
from tests.faults.test_kills import plain

pytestmark = pytest.mark.usefixtures("place")


def flips(path: Path, count: int) -> Iterator[int]:
    """Flip one bit of a file, and another one each time; yields the byte's position."""
    content, rng = path.read_bytes(), random.Random(count)
    for _ in range(count):
        at, flipped = rng.randrange(len(content)), bytearray(content)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        yield at


def test_a_record_of_the_cache_with_a_flipped_bit_is_no_record(record_property: Any) -> None:
    (file,) = Path("cache").rglob("features.bin")
    cache = FeatureCache(Path("cache"), json.loads(file.with_name("recipe.json").read_text()), 1280)
    right = {digest: vector.tolist() for digest, vector in cache.load().items()}
    for at in flips(file, 100 * REPEATS):
        hit = list(right)[at // cache.record.itemsize]
        found = {digest: vector.tolist() for digest, vector in cache.load().items()}
        assert found | {hit: right[hit]} == right
        assert hit not in found
    record_property("bits flipped in caches", 100 * REPEATS)


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "own.pth"])
def test_tensors_with_a_flipped_bit_are_named_or_the_same(name: str, record_property: Any) -> None:
    torch.save({"weight": torch.arange(9999.0)}, "runs/first/own.pth")
    path, noticed = Path("runs/first", name), 0
    right = plain(load_tensors(path))
    for _ in flips(path, 30 * REPEATS):
        try:
            found = plain(load_tensors(path))
        except InputError as error:
            noticed += str(error).startswith(f"{path}: damaged")
            continue
        assert found == right
    assert noticed > 15 * REPEATS
    record_property("bits flipped in checkpoints", 30 * REPEATS)


@pytest.mark.parametrize("name", [FILE_NAME, CHECKSUM])
def test_a_manifest_with_a_flipped_bit_is_not_read(name: str, record_property: Any) -> None:
    split = Path("data/split")
    (split / CHECKSUM).write_text((split / CHECKSUM).read_text()[:64])  # the digest alone
    for _ in flips(split / name, 30 * REPEATS):
        with pytest.raises(InputError, match=f"{split}/manifest.csv: damaged; remove"):
            read_manifest(split)
    record_property("bits flipped in manifests", 30 * REPEATS)
