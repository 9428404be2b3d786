"""Features or pixels on disk: appended once, found by the sha256 of the image's file."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fracture.atomic import attach_path


class FeatureCache:
    """Vectors of one spec, found by the sha256 of the image's file.

    The file is a sequence of records of one size (checksum, sha256, vector) and is only appended
    to. A record that is torn or rotten fails its checksum and counts as absent: the image is
    computed again. There is no index that could disagree, and several processes may append.

    Half precision would take half the space, but changed 1 of 23,649 decisions: 20 splits of
    FracAtlas, 7,883 test images in all, three thresholds, EfficientNet-Lite0, two cores
    (`python -m benchmarks.half_precision FRACATLAS`).

    Args:
        cache_dir: holds one folder for each spec, named by the hash of its key.
        key: what the vectors depend on besides the image, including `backbone`.
        width: numbers in a vector; of images, their shape.
        dtype: of the numbers, as NumPy writes it.
    """

    def __init__(
        self, cache_dir: Path, key: Mapping[str, Any], width: int | tuple, dtype: str = "<f4"
    ) -> None:
        self.key = json.dumps(key, indent=1)
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:16]
        self.file = cache_dir / f"{key['backbone'].replace('/', '-')}-{digest}" / "features.bin"
        self.record = np.dtype([("crc32", "<u4"), ("sha256", "u1", 32), ("vector", dtype, width)])

    def append(self, digests: Sequence[str], vectors: np.ndarray) -> None:
        """Keep (N, width) vectors under N hexadecimal digests."""
        records = np.zeros(len(digests), self.record)
        records["sha256"] = [list(bytes.fromhex(digest)) for digest in digests]
        records["vector"] = vectors
        records["crc32"] = _checksums(records)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with attach_path(self.file), FileLock(f"{self.file}.lock"), self.file.open("ab") as file:
            if file.tell() == 0:
                self.file.with_name("recipe.json").write_text(self.key)
            # A write that was cut short left part of a record: fill it up, so the next ones align.
            padding = -file.seek(0, os.SEEK_END) % self.record.itemsize
            file.write(bytes(padding) + records.tobytes())

    def load(self) -> dict[str, np.ndarray]:
        """Every intact vector by its digest: (width,), views of the file mapped into memory."""
        count = self.file.stat().st_size // self.record.itemsize if self.file.exists() else 0
        if count == 0:
            return {}
        records = np.memmap(self.file, self.record, "r", shape=count)
        vectors = np.asarray(records["vector"])
        intact = np.flatnonzero(records["crc32"] == _checksums(records))
        digests = (digest.tobytes().hex() for digest in records["sha256"][intact])
        return dict(zip(digests, (vectors[i] for i in intact), strict=True))


def _checksums(records: np.ndarray) -> list[int]:
    rows = records.view(np.uint8).reshape(len(records), -1)
    return [zlib.crc32(row[4:].data) for row in rows]
