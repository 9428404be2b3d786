"""Feature vectors on disk: appended once, found by the image's bytes, read a block at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fracture.atomic import named
from fracture.cli import InputError

BLOCK = 1024  # records that are read at a time


class FeatureCache:
    """Feature vectors of one recipe, found by the sha256 of the image's file.

    The file is a sequence of records of one size (checksum, sha256, vector), only ever appended to.
    A record that is torn or rotten fails its checksum and counts as absent: the image is computed
    again. There is no index that could disagree, and two processes may write at once.

    Half precision would take half the space, but changed 1 of 23,634 decisions: 20 splits of
    FracAtlas, 7,878 test images in all, three thresholds, EfficientNet-Lite0, two cores
    (`python -m benchmarks.half_precision FRACATLAS`).

    Args:
        cache_dir: holds one folder for each recipe, named by its hash.
        recipe: what the vectors depend on besides the image, `backbone` among it.
        width: numbers in a vector.
    """

    def __init__(self, cache_dir: Path, recipe: Mapping[str, Any], width: int) -> None:
        self.recipe = json.dumps(recipe, indent=1)
        key = hashlib.sha256(self.recipe.encode()).hexdigest()[:16]
        self.file = cache_dir / f"{recipe['backbone']}-{key}" / "features.bin"
        self.record = np.dtype([("crc32", "<u4"), ("sha256", "u1", 32), ("vector", "<f4", width)])

    def append(self, digests: Sequence[str], vectors: np.ndarray) -> None:
        """Keep (N, width) float32 vectors under N hexadecimal digests."""
        records = np.zeros(len(digests), self.record)
        records["sha256"] = [list(bytes.fromhex(digest)) for digest in digests]
        records["vector"] = vectors
        records["crc32"] = _checksums(records)
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.with_name("recipe.json").write_text(self.recipe)
        with named(self.file), self.file.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes may be at it too
            # A write that was cut short left part of a record: fill it up, so the next ones align.
            padding = -file.seek(0, os.SEEK_END) % self.record.itemsize
            file.write(bytes(padding) + records.tobytes())

    def find(self) -> dict[str, int]:
        """The place in the file of each digest whose record is whole."""
        places: dict[str, int] = {}
        count = self.file.stat().st_size // self.record.itemsize if self.file.exists() else 0
        starts = range(0, count, BLOCK)
        for start in tqdm(starts, "checking the cache", delay=2, disable=None):
            offset = start * self.record.itemsize
            records = np.fromfile(self.file, self.record, min(BLOCK, count - start), offset=offset)
            for i in np.flatnonzero(records["crc32"] == _checksums(records)).tolist():
                places[records["sha256"][i].tobytes().hex()] = start + i
        return places


def _checksums(records: np.ndarray) -> list[int]:
    rows = records.view(np.uint8).reshape(len(records), -1)
    return [zlib.crc32(row[4:].data) for row in rows]


class StoredFeatures:
    """N feature vectors that stay on disk; indexing reads some of them.

    Args:
        cache: has them.
        places: (N,) int64, in the cache's file.
    """

    def __init__(self, cache: FeatureCache, places: torch.Tensor) -> None:
        self.cache, self.places = cache, places
        self.width = cache.record["vector"].shape[0]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Read (n, width) float32 vectors."""
        # Not mapped into memory: there the kernel adds up to 700 KB of file to each row, and a
        # million rows would fill it.
        places = self.places[index].tolist()
        vectors = np.empty((len(places), self.width), "<f4")
        size = self.cache.record.itemsize
        offset = size - vectors.itemsize * self.width  # the vector is the record's end
        with self.cache.file.open("rb", buffering=0) as file:
            for vector, place in zip(vectors, places, strict=True):
                file.seek(place * size + offset)
                if file.readinto(vector.data) != vector.nbytes:
                    raise InputError(f"{self.cache.file}: was cut while it was in use; run again")
        return torch.from_numpy(vectors)

    def subset(self, mask: torch.Tensor) -> StoredFeatures:
        """The vectors at which an (N,) bool mask is true; nothing is read."""
        return StoredFeatures(self.cache, self.places[mask])
