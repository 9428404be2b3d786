"""Each image through the frozen backbone once: the pass, and its results kept on disk.

The backbone is frozen and the preprocessing has no randomness, so an image's feature vector never
changes: 20 epochs over stored vectors are the textbook's 20 epochs over images, not an estimate.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from fracture.config import Device, Fit, Precision
from fracture.errors import InputError
from fracture.images import PREPROCESSING_VERSION, ImageFiles
from fracture.manifest import Row, Split
from fracture.model import Weights, build_backbone, feature_width


@dataclass(frozen=True)
class Recipe:
    """Everything that a feature vector depends on besides the image."""

    backbone: str
    weights: Weights
    image_size: int
    fit: Fit
    precision: str

    def describe(self) -> dict[str, Any]:
        """The recipe in plain values, without this machine's paths: equal if the vectors are."""
        return {
            "backbone": self.backbone,
            "weights": self.weights.identity,
            "normalisation": self.weights.normalisation,
            "image_size": self.image_size,
            "fit": self.fit,
            "precision": self.precision,
            "preprocessing": PREPROCESSING_VERSION,
        }


class FeatureCache:
    """Feature vectors of one recipe, found by the sha256 of the image's file.

    The file is a sequence of records of one size (checksum, sha256, vector), only ever appended to.
    A record that is torn or rotten fails its checksum and counts as absent: the image is computed
    again. There is no index that could disagree, and two processes may write at once.

    Args:
        cache_dir: holds one folder for each recipe, named by its hash.
        recipe: how the vectors are computed.
    """

    def __init__(self, cache_dir: Path, recipe: Recipe) -> None:
        self.recipe = json.dumps(recipe.describe(), indent=1)
        key = hashlib.sha256(self.recipe.encode()).hexdigest()[:16]
        self.file = cache_dir / f"{recipe.backbone}-{key}" / "features.bin"
        width = feature_width(recipe.backbone)
        self.record = np.dtype([("crc32", "<u4"), ("sha256", "u1", 32), ("vector", "<f4", width)])

    def append(self, digests: Sequence[str], vectors: np.ndarray) -> None:
        """Keep (N, width) float32 vectors under N hexadecimal digests."""
        records = np.zeros(len(digests), self.record)
        records["sha256"] = [list(bytes.fromhex(digest)) for digest in digests]
        records["vector"] = vectors
        records["crc32"] = [_checksum(record) for record in records]
        if not self.file.exists():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.with_name("recipe.json").write_text(self.recipe)
        with self.file.open("ab") as file:
            # A write that was cut short left part of a record: fill it up, so the next ones align.
            padding = -file.tell() % self.record.itemsize
            file.write(bytes(padding) + records.tobytes())

    def load(self) -> tuple[np.ndarray, dict[str, int]]:
        """All vectors, memory-mapped as (records, width) float32, and the record of each digest."""
        count = self.file.stat().st_size // self.record.itemsize if self.file.exists() else 0
        if not count:
            return np.zeros(0, self.record)["vector"], {}
        records = np.memmap(self.file, self.record, "r", shape=(count,))
        whole = (i for i, record in enumerate(records) if record["crc32"] == _checksum(record))
        return records["vector"], {records[i]["sha256"].tobytes().hex(): i for i in whole}


def _checksum(record: np.void) -> int:
    return zlib.crc32(record.tobytes()[4:])


def pick_device(device: Device, precision: Precision) -> tuple[torch.device, str]:
    """Resolve "auto": the GPU if there is one, and bfloat16 where the hardware has it.

    float16 is no choice: EfficientNet's activations overflow in it.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("device is 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    picked = torch.device("cuda" if has_gpu and device != "cpu" else "cpu")
    if precision == "auto":
        fast = picked.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if fast else "float32"
    return picked, precision


@torch.inference_mode()
def backbone_pass(
    paths: Sequence[Path],
    digests: Sequence[str] | None,
    recipe: Recipe,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
    """Run the backbone over files, in order, with a progress bar.

    Args:
        paths: the files.
        digests: the sha256 that each must have; None takes them as they are.
        recipe: the backbone and what it is shown.
        batch_size: images at a time.
        workers: processes that decode.
        device: where the backbone runs.

    Yields:
        For each batch: the indices into `paths` of its readable files, their (N, width) float32
        features, and by index the reasons of the unreadable ones.
    """
    backbone = build_backbone(recipe.backbone, recipe.image_size, recipe.weights).to(device)
    loader = DataLoader(
        ImageFiles(paths, digests, recipe.image_size, recipe.fit),
        batch_size,
        num_workers=min(workers, len(paths) // batch_size),  # a few images are not worth a process
        pin_memory=device.type == "cuda",
    )
    with tqdm(desc="backbone", total=len(paths), unit=" images", disable=None) as bar:
        for indices, images, reasons in loader:
            readable = torch.tensor([not reason for reason in reasons])
            with torch.autocast(device.type, torch.bfloat16, recipe.precision == "bfloat16"):
                vectors = backbone(images[readable].to(device, non_blocking=True))
            unreadable = {
                int(i): reason for i, reason in zip(indices, reasons, strict=True) if reason
            }
            yield indices[readable].tolist(), vectors.float().cpu().numpy(), unreadable
            bar.update(len(indices))


def cached_features(
    split: Split,
    recipe: Recipe,
    cache_dir: Path,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> tuple[torch.Tensor, list[Row], dict[Row, str]]:
    """A split's features from the cache; images not in it pass the backbone once and are kept.

    With everything in the cache, no image is opened and no backbone is built.

    Returns:
        (N, width) float32 features, the N rows they belong to, and the rows whose images could not
        be read, with the reason.
    """
    cache = FeatureCache(cache_dir, recipe)
    vectors, index_of = cache.load()
    different = {row.sha256: row for row in split.rows}  # one pass serves all copies of a file
    todo = [row for digest, row in different.items() if digest not in index_of]
    print(
        f"features: {len(different):,} different images, {len(todo):,} not in {cache.file.parent}"
    )
    reasons: dict[str, str] = {}
    if todo:
        paths = [split.folder / row.place for row in todo]
        todo_digests = [row.sha256 for row in todo]
        execution = batch_size, workers, device
        for done, new, unreadable in backbone_pass(paths, todo_digests, recipe, *execution):
            cache.append([todo_digests[i] for i in done], new)
            reasons |= {todo_digests[i]: reason for i, reason in unreadable.items()}
        vectors, index_of = cache.load()
    rows = [row for row in split.rows if row.sha256 not in reasons]
    features = torch.from_numpy(vectors[[index_of[row.sha256] for row in rows]])
    unread = {row: reasons[row.sha256] for row in split.rows if row.sha256 in reasons}
    return features, rows, unread
