"""Each image through the frozen backbone once: the pass, and its results kept on disk.

The backbone is frozen and the preprocessing has no randomness, so an image's feature vector never
changes: 20 epochs over stored vectors are the textbook's 20 epochs over images, not an estimate.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from tqdm import tqdm

from fracture.cli import InputError
from fracture.config import Device, Fit, Precision, Workers
from fracture.data.images import PREPROCESSING_VERSION, ImageFiles
from fracture.data.manifest import Row, Split
from fracture.features.cache import FeatureCache, StoredFeatures
from fracture.features.distributed import ALONE, Team, local_rank, rank, team
from fracture.models.backbone import Backbone, Weights, build_backbone, feature_width

# Images at a time at 224 x 224 pixels, fewer of larger ones: memory then does not depend on the
# size. A CPU gains nothing from more; a GPU needs them to be busy.
PASS_IMAGES = {"cpu": 16, "cuda": 128}

Result = tuple[list[int], np.ndarray, dict[int, str]]


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
            "precision": self.precision.replace("bfloat16", "bfloat16, weights too"),
            "preprocessing": PREPROCESSING_VERSION,
        }


def pick_device(device: Device, precision: Precision) -> tuple[torch.device, str]:
    """Resolve "auto": the GPU if there is one, and bfloat16 where the hardware has it.

    float16 is no choice: EfficientNet's activations overflow in it.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("device is 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    picked = torch.device(f"cuda:{local_rank()}" if has_gpu and device != "cpu" else "cpu")
    if precision == "auto":
        fast = picked.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if fast else "float32"
    return picked, precision


def ready_backbone(recipe: Recipe, device: torch.device) -> Backbone:
    """The recipe's backbone on a device, in its precision."""
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        # Let glibc keep what tensors free: it would map each large one anew, and the kernel fill it
        # with zeros, which costs a pass up to a quarter of its time with B6, half with Lite0.
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 2**31 - 1):  # M_MMAP_THRESHOLD, in bytes; an old glibc may refuse so many
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    backbone = build_backbone(recipe.backbone, recipe.image_size, recipe.weights)
    if recipe.precision == "bfloat16":
        backbone.net.bfloat16()
    return backbone.to(device)


@torch.inference_mode()
def backbone_pass(
    paths: Sequence[Path],
    digests: Sequence[str] | None,
    recipe: Recipe,
    workers: Workers,
    device: torch.device,
    processes: Team = ALONE,
) -> Iterator[Result]:
    """Run the backbone over files, in order, with a progress bar.

    Args:
        paths: the files.
        digests: the sha256 that each must have; None takes them as they are.
        recipe: the backbone and what it is shown.
        workers: processes that decode; "auto" has one for every core, up to 16.
        device: where the backbone runs.
        processes: they share the batches; all results come out in the first one.

    Yields:
        For each batch: the indices into `paths` of its readable files, their (N, width) float32
        features, and by index the reasons of the unreadable ones.

    Raises:
        InputError: features are not finite.
    """
    backbone = ready_backbone(recipe, device)
    size = max(1, PASS_IMAGES[device.type] * 224**2 // recipe.image_size**2)
    batches = [batch.tolist() for batch in torch.arange(len(paths)).split(size)]
    share = processes.share(batches)
    cores = cpu_count() // processes.size  # those that this job may use, as in a container
    decoders = min(16, cores) if workers == "auto" else workers
    loader = DataLoader(
        ImageFiles(paths, digests, recipe.image_size, recipe.fit),
        batch_sampler=share,
        # A few images are not worth a process.
        num_workers=max(0, min(decoders, len(share) - 1)),
        pin_memory=device.type == "cuda",
    )

    def passed() -> Iterator[tuple[list[int], torch.Tensor, Sequence[str]]]:
        for indices, images, reasons in loader:
            if len(images) < size and digests:
                # Filled up, for features that are kept: with another shape sums would be taken in
                # another order, and a pass that was cut short not end in the same bits.
                images = pad(images, (0, 0, 0, 0, 0, size - len(images)))
            yield indices.tolist(), backbone(images.to(device, non_blocking=True)), reasons

    results = (_result(paths, *batch) for batch in _one_behind(passed()))
    with tqdm(desc="backbone", total=len(paths), unit=" images", disable=rank() > 0 or None) as bar:
        for result in processes.collect(results, len(batches)):
            yield result
            bar.update(len(result[0]) + len(result[2]))


def _one_behind(items: Iterable[Any]) -> Iterator[Any]:
    """Each item once the next one has begun: a GPU works while the CPU waits for its result."""
    before = None
    for item in items:
        if before:
            yield before
        before = item
    if before:
        yield before


def _result(
    paths: Sequence[Path], indices: list[int], vectors: torch.Tensor, reasons: Sequence[str]
) -> Result:
    unreadable = {i: reason for i, reason in zip(indices, reasons, strict=True) if reason}
    found = vectors.cpu().numpy()[: len(indices)][[not reason for reason in reasons]]
    readable = [i for i in indices if i not in unreadable]
    for i in np.flatnonzero(~np.isfinite(found).all(1)):
        raise InputError(
            f"{paths[readable[i]]}: its features are not finite numbers; try --precision float32, "
            f"or other weights"
        )
    return readable, found, unreadable


def cached_features(
    split: Split, recipe: Recipe, cache_dir: Path, workers: Workers, device: torch.device
) -> tuple[StoredFeatures, list[Row], dict[Row, str]]:
    """A split's features from the cache; images not in it pass the backbone once and are kept.

    With everything in the cache, no image is opened and no backbone is built. Of several processes
    that torchrun started each passes its share, and only the first one writes.

    Returns:
        (N, width) features, the N rows they belong to, and the rows whose images could not be read,
        with the reason.
    """
    cache = FeatureCache(cache_dir, recipe.describe(), feature_width(recipe.backbone))
    different = {row.sha256: row for row in split.rows}  # one pass serves all copies of a file
    reasons: dict[str, str] = {}
    with team() as processes:
        places = processes.agree(cache.find() if rank() == 0 else {})
        todo = [row for digest, row in different.items() if digest not in places]
        if rank() == 0:
            new_ones = f"{len(todo):,} not in {cache.file.parent}"
            print(f"features: {len(different):,} different images, {new_ones}")
        if todo:
            paths = [split.folder / row.place for row in todo]
            digests = [row.sha256 for row in todo]
            batches = backbone_pass(paths, digests, recipe, workers, device, processes)
            for done, new, unreadable in batches:
                cache.append([digests[i] for i in done], new)
                reasons |= {digests[i]: reason for i, reason in unreadable.items()}
            places, reasons = processes.agree((cache.find() if rank() == 0 else {}, reasons))
    rows = [row for row in split.rows if row.sha256 not in reasons]
    features = StoredFeatures(cache, torch.tensor([places[row.sha256] for row in rows]))
    unread = {row: reasons[row.sha256] for row in split.rows if row.sha256 in reasons}
    return features, rows, unread
