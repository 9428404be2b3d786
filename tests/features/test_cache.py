"""A vector is found as it was kept, or not at all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fracture.features.cache import FeatureCache
from fracture.models.backbone import FeatureSpec
from fracture.models.weights import Weights
from tests.conftest import ROOT

RECORD = 4 + 32 + 4 * 7  # checksum, digest, vector
WRITER = """
import sys, pathlib, numpy, fracture.features.cache
cache = fracture.features.cache.FeatureCache(pathlib.Path(sys.argv[1]), {"backbone": "b0"}, 7)
for i in range(100, 200):
    cache.append([f"{i:064x}"], numpy.full((1, 7), i, "float32"))
"""


def keep(folder: Path, start: int, end: int) -> Path:
    """Keep vectors one by one: seven numbers that are all i, under a digest of i."""
    cache = FeatureCache(folder, {"backbone": "b0"}, 7)
    for i in range(start, end):
        cache.append([f"{i:064x}"], np.full((1, 7), i, np.float32))
    return cache.file


def found(folder: Path) -> list[int]:
    vectors = FeatureCache(folder, {"backbone": "b0"}, 7).load()
    assert all(vector.tolist() == [int(name, 16)] * 7 for name, vector in vectors.items())
    return sorted(int(name, 16) for name in vectors)


@pytest.mark.parametrize("length", [0, RECORD, 4 * RECORD + 30])
def test_a_torn_tail_is_absent_and_what_follows_it_is_found(tmp_path: Path, length: int) -> None:
    assert found(tmp_path) == []
    file = keep(tmp_path, 0, 10)
    assert found(tmp_path) == [*range(10)]
    assert file.stat().st_size == 10 * RECORD
    file.write_bytes(file.read_bytes()[:length])
    assert found(tmp_path) == [*range(length // RECORD)]
    keep(tmp_path, length // RECORD, 10)
    assert found(tmp_path) == [*range(10)]


def test_two_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT) as other:
        while not [*tmp_path.rglob("features.bin")]:  # it imports for some seconds
            assert other.poll() is None
        keep(tmp_path, 0, 100)
    assert other.returncode == 0
    assert found(tmp_path) == [*range(200)]


def test_another_spec_is_another_file_and_an_equal_one_is_not() -> None:
    weights = Weights("none", None, "a"), Weights("file x.pth", Path("x.pth"), "a")
    one, same = (FeatureSpec("efficientnet-b0", w, 224, "squash", "float32") for w in weights)
    others = [Weights("none", None, "b"), Weights("advprop", None, "a")]
    specs = [one, *(replace(one, weights=other) for other in others), replace(one, image_size=96)]
    specs += [replace(one, fit="letterbox"), replace(one, precision="bfloat16")]
    specs += [replace(one, backbone="efficientnet-lite0")]
    files = {FeatureCache(Path("cache"), spec.cache_key(), 7).file for spec in specs}
    assert len(files) == len(specs)
    assert FeatureCache(Path("cache"), same.cache_key(), 7).file in files
