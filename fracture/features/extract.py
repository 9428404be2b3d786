"""Each image through the frozen backbone once, and its features kept.

The backbone is frozen and the preprocessing has no randomness, so an image's features never change:
20 epochs over stored features are the 20 epochs over images, not an approximation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from joblib import cpu_count  # honours a container's quota, unlike os.cpu_count
from torch.nn.functional import pad
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm import tqdm

from fracture.cli import InputError, escape_controls, one_line
from fracture.config import Config
from fracture.data.manifest import Row
from fracture.features.cache import FeatureCache
from fracture.models.backbone import FeatureSpec, architecture, build_backbone

if TYPE_CHECKING:
    from fracture.data.split_folder import SplitFolder  # torchvision takes a second to import

# Images in a batch at 224 x 224 pixels, fewer of larger ones, so that memory does not depend on
# the size. A CPU gains nothing from more; a GPU needs them to be busy.
FEATURE_BATCH = {"cpu": 16, "cuda": 128}

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun

# Of a batch: the positions of the readable images, their outputs, the reasons of the others.
BatchResult = tuple[list[int], np.ndarray, dict[int, str]]


@dataclass(frozen=True)
class FeatureSet:
    """The features of a train, val or test folder.

    Attributes:
        features: (N, width) float32, of the readable images.
        labels: (N,) int64 class indices.
        rows: the N rows of the manifest.
        unreadable: the rows of the other images, each with its reason.
    """

    features: torch.Tensor
    labels: torch.Tensor
    rows: list[Row]
    unreadable: dict[Row, str]


def rank() -> int:
    """This process's number among those that torchrun started; 0 if it is alone."""
    return int(os.environ.get("RANK", 0))


@dataclass(frozen=True)
class Compute:
    """How images pass the backbone: on which device, in which precision, with how many decoders."""

    device: torch.device
    precision: str
    workers: int


def pick_compute(config: Config) -> Compute:
    """Resolve "auto": a GPU if there is one, bfloat16 where it has it, a decoder for every core.

    float16 is not offered: EfficientNet's activations overflow in it.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("device is 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = torch.device(gpu if has_gpu and config.device != "cpu" else "cpu")
    precision: str = config.precision
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if fast else "float32"
    cores = min(16, cpu_count() // WORLD_SIZE)
    return Compute(device, precision, cores if config.workers == "auto" else config.workers)


@torch.inference_mode()
def run_batches(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: Dataset,
    image_size: int,
    compute: Compute,
    title: str = "backbone",
    pad_last: bool = False,
) -> Iterator[BatchResult]:
    """Run a model over images, in order, with a progress bar.

    Args:
        model: (N, H, W) uint8 images on the device to (N, ...) outputs.
        images: items begin with the image and end with "", or the reason why it is unreadable.
        image_size: pixels a side.
        compute: where the model runs.
        title: of the progress bar.
        pad_last: fill up a short last batch. Another shape would add up in another order, and an
            interrupted pass would not end in the same bits.
    """
    count = len(images)  # type: ignore[arg-type]
    device, start = compute.device, 0
    size = max(1, FEATURE_BATCH[device.type] * 224**2 // image_size**2)
    workers = max(0, min(compute.workers, -(-count // size) - 1))  # few images need no process
    loader = DataLoader(images, size, num_workers=workers, pin_memory=device.type == "cuda")
    with tqdm(desc=title, total=count, unit=" images", disable=rank() > 0 or None) as bar:
        for batch, *_, reasons in loader:
            if pad_last:
                batch = pad(batch, (0, 0, 0, 0, 0, size - len(batch)))
            outputs = model(batch.to(device, non_blocking=True)).cpu().numpy()
            good = [i for i, reason in enumerate(reasons) if not reason]
            bad = {start + i: reason for i, reason in enumerate(reasons) if reason}
            yield [start + i for i in good], outputs[good], bad
            start += len(reasons)
            bar.update(len(reasons))


def cached_features(
    folders: Sequence[SplitFolder], spec: FeatureSpec, cache_dir: Path, compute: Compute
) -> list[FeatureSet]:
    """The features of split folders; images that are not in the cache pass the backbone once.

    With everything in the cache, no image is opened and no backbone is built. Of several processes
    that torchrun started, each passes and appends its own share.

    Args:
        folders: of train, val or test.
        spec: the backbone, and how it sees an image.
        cache_dir: of the feature cache.
        compute: where the backbone runs.

    Raises:
        InputError: features are not finite, or a folder has no readable image of a class.
    """
    cache = FeatureCache(cache_dir, spec.cache_key(), architecture(spec.backbone).width)
    rows = [row for folder in folders for row in folder.rows]
    position = {row.sha256: i for i, row in enumerate(rows)}  # one pass serves all copies of a file
    with all_ranks() as meet:
        known = cache.load()
        missing = [digest for digest in position if digest not in known]
        meet()  # every rank has read the cache before the first one appends to it
        if rank() == 0:
            print(
                f"features: {len(position):,} images, {len(missing):,} not in {cache.file.parent}"
            )
        if missing:
            share = missing[rank() :: WORLD_SIZE]
            images: Subset = Subset(ConcatDataset(folders), [position[digest] for digest in share])
            _extract(images, share, spec, cache, compute)
            meet()
            known = cache.load()
    return [_feature_set(folder, known) for folder in folders]


def _extract(
    images: Subset, digests: Sequence[str], spec: FeatureSpec, cache: FeatureCache, compute: Compute
) -> None:
    """Append the features of (N) images to the cache, batch by batch."""
    backbone = build_backbone(spec, compute.device)
    batches = run_batches(backbone, images, spec.image_size, compute, pad_last=True)
    for done, vectors, _ in batches:
        if not np.isfinite(vectors).all():
            first = digests[done[int(np.argmin(np.isfinite(vectors).all(1)))]]
            raise InputError(
                f"the features of the image with sha256 {first} are not finite; try --precision "
                "float32, or other weights"
            )
        cache.append([digests[i] for i in done], vectors)


def _feature_set(folder: SplitFolder, known: Mapping[str, np.ndarray]) -> FeatureSet:
    """Look up a folder's features; what is still not known could not be read."""
    rows = [row for row in folder.rows if row.sha256 in known]
    labels = torch.tensor([folder.class_to_idx[row.label] for row in rows])
    for label, index in folder.class_to_idx.items():
        if index not in labels:
            raise InputError(f"{folder.root}: no readable image of {label}")
    features = torch.from_numpy(np.stack([known[row.sha256] for row in rows]))
    unreadable = {
        row: folder[i][2] or "not readable at first"
        for i, row in enumerate(folder.rows)
        if row.sha256 not in known
    }
    for row, reason in unreadable.items():
        print(f"left out, unreadable: {escape_controls(row.image)}: {reason}")
    return FeatureSet(features, labels, rows, unreadable)


@contextmanager
def all_ranks() -> Iterator[Callable[[], None]]:
    """Join torchrun's processes; yields a function that waits until all of them call it.

    gloo also serves GPUs: nothing but the waiting is shared.
    """

    def meet() -> None:
        try:
            if WORLD_SIZE > 1:
                dist.barrier()
        except RuntimeError as error:  # gloo raises nothing else
            raise InputError(
                "another process of this job has ended, see its message; finished work is kept: "
                f"run again ({one_line(error)[:60]})"
            ) from error

    if WORLD_SIZE > 1:
        dist.init_process_group("gloo")
    try:
        yield meet
    finally:
        if WORLD_SIZE > 1:
            dist.destroy_process_group()
