"""Each image decoded or passed through a frozen network once, and the result kept.

The backbone is frozen and the preprocessing has no randomness, so an image's features never change:
20 epochs over stored features are the 20 epochs over images, not an approximation.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from joblib import cpu_count  # honours a container's quota, unlike os.cpu_count
from torch import nn
from torch.nn.functional import pad
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm import tqdm

from fracture.cli import InputError, escape_controls
from fracture.config import Config, Fit
from fracture.data.images import PREPROCESSING_VERSION
from fracture.data.manifest import Row
from fracture.distributed import RANK, WORLD_SIZE, barrier
from fracture.features.cache import FeatureCache
from fracture.models.backbone import FeatureSpec

if TYPE_CHECKING:  # torchvision takes a second to import, and a single film does not need it
    from fracture.data.split_folder import SplitFolder

# Images in a batch at 224 x 224 pixels, fewer of larger ones, so that memory does not depend on
# the size. A CPU gains nothing from more; a GPU needs them to be busy.
FEATURE_BATCH = {"cpu": 16, "cuda": 128}

# Positions of the readable images, their outputs, and the reasons of the others by position.
BatchResult = tuple[list[int], np.ndarray, dict[int, str]]


@dataclass(frozen=True)
class FeatureSet:
    """The features, or the pixels, of a train, val or test folder.

    Attributes:
        features: (N, width) float32, of the readable images; (N, size, size) uint8 pixels from
            `cached_images`.
        labels: (N,) int64 class indices.
        rows: the N rows of the manifest.
        unreadable: the rows of the other images, each with its reason.
    """

    features: torch.Tensor
    labels: torch.Tensor
    rows: list[Row]
    unreadable: dict[Row, str]


@dataclass(frozen=True)
class ImageSpec:
    """Decoded images in place of features, for a network that is trained as a whole."""

    image_size: int
    fit: Fit

    title = "decoding"  # of the pass
    dtype = "u1"

    @property
    def width(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    def build(self, device: torch.device) -> nn.Module:
        return nn.Identity().to(device)

    def cache_key(self) -> dict[str, Any]:
        return {"backbone": "images", **asdict(self), "preprocessing": PREPROCESSING_VERSION}


@dataclass(frozen=True)
class Compute:
    """How images pass the backbone: on which device, in which precision, with how many decoders."""

    device: torch.device
    precision: str
    workers: int


def pick_device(wanted: str) -> torch.device:
    """Of auto, cpu or cuda: auto is a GPU if there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise InputError("device is 'cuda', but torch sees no GPU here; allowed: auto, cpu")
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return torch.device(gpu if has_gpu and wanted != "cpu" else "cpu")


def pick_compute(config: Config) -> Compute:
    """Resolve "auto": a GPU if there is one, bfloat16 where it has it, a decoder for every core.

    float16 is not offered: EfficientNet's activations overflow in it.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    device = pick_device(config.device)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    best = "bfloat16" if fast else "float32"
    precision = best if config.precision == "auto" else config.precision
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
    with tqdm(desc=title, total=count, unit=" images", disable=RANK > 0 or None) as bar:
        for batch, *_, reasons in loader:
            if pad_last:
                batch = pad(batch, (0, 0, 0, 0, 0, size - len(batch)))
            outputs = model(batch.to(device, non_blocking=True)).cpu().numpy()
            good = [i for i, reason in enumerate(reasons) if not reason]
            bad = {start + i: reason for i, reason in enumerate(reasons) if reason}
            yield [start + i for i in good], outputs[good], bad
            start += len(reasons)
            bar.update(len(reasons))


def cached_images(
    folders: Sequence["SplitFolder"], spec: ImageSpec, cache_dir: Path, compute: Compute
) -> list[FeatureSet]:
    """The pixels of split folders, (N, size, size) uint8; each image is decoded once, ever."""
    known = _known_features(folders, spec, cache_dir, replace(compute, device=torch.device("cpu")))
    return [_feature_set(folder, [known], itemgetter(0)) for folder in folders]


def cached_features(
    folders: Sequence["SplitFolder"], spec: FeatureSpec, cache_dir: Path, compute: Compute
) -> list[FeatureSet]:
    """The features of split folders, of all views; each view passes the network once.

    Args:
        folders: of train, val or test.
        spec: the network, and how it sees an image.
        cache_dir: of the feature cache.
        compute: where the network runs.

    Raises:
        InputError: features are not finite, or a folder has no readable image of a class.
    """
    known = [_known_features(folders, view, cache_dir, compute) for view in spec.views]
    return [_feature_set(folder, known, spec.merge) for folder in folders]


def _known_features(
    folders: Sequence["SplitFolder"],
    spec: FeatureSpec | ImageSpec,
    cache_dir: Path,
    compute: Compute,
) -> dict[str, np.ndarray]:
    """The features of one view by digest; images that are not in the cache pass the network.

    With everything in the cache, no image is opened and no network is built. Of several processes
    that torchrun started, each passes and appends its own share.
    """
    folders = [folder.resized(spec.image_size, spec.fit) for folder in folders]
    cache = FeatureCache(cache_dir, spec.cache_key(), spec.width, spec.dtype)
    rows = [row for folder in folders for row in folder.rows]
    position = {row.sha256: i for i, row in enumerate(rows)}  # one pass serves all copies of a file
    known = cache.load()
    missing = [digest for digest in position if digest not in known]
    barrier()  # every rank has read the cache before one appends to it
    if RANK == 0:
        new = f"{len(missing):,} not in {cache_dir}"
        print(f"{spec.title}: {len(position):,} different images, {new}")
    if missing:
        digests = missing[RANK::WORLD_SIZE]
        images: Subset = Subset(ConcatDataset(folders), [position[digest] for digest in digests])
        network, size = spec.build(compute.device), spec.image_size
        batches = run_batches(network, images, size, compute, spec.title, pad_last=True)
        for done, vectors, _ in batches:
            for i, vector in zip(done, vectors, strict=True):
                if not np.isfinite(vector).all():
                    hint = "features are not finite; try --precision float32, or other weights"
                    raise InputError(f"{rows[position[digests[i]]].path}: {hint}")
            cache.append([digests[i] for i in done], vectors)
        barrier()
        known = cache.load()
    return known


def _feature_set(
    folder: "SplitFolder",
    known: Sequence[Mapping[str, np.ndarray]],
    merge: Callable[[list[torch.Tensor]], torch.Tensor],
) -> FeatureSet:
    """Look up and merge a folder's features of all views; the others could not be read."""
    good = [all(row.sha256 in view for view in known) for row in folder.rows]
    rows = [*compress(folder.rows, good)]
    labels = torch.tensor([folder.class_to_idx[row.label] for row in rows])
    for label, index in folder.class_to_idx.items():
        if index not in labels:
            raise InputError(f"{folder.root}: no readable image of {label}")
    views = [torch.from_numpy(np.stack([view[row.sha256] for row in rows])) for view in known]
    failed = [i for i, readable in enumerate(good) if not readable]
    unreadable = {folder.rows[i]: folder[i][2] or "not readable at first" for i in failed}
    for row, reason in unreadable.items():
        print(f"left out, unreadable: {escape_controls(row.image)}: {reason}")
    return FeatureSet(merge(views), labels, rows, unreadable)
