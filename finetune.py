"""Train the network itself, and a map of where the fractures are.

    python finetune.py                    # EfficientNet-Lite0, FracAtlas' boxes
    python finetune.py --init RUN         # start from a run of either script
    python finetune.py --box_weight 0     # without boxes: the classes alone
    python finetune.py --resume NAME      # go on with an interrupted run
    torchrun --nproc_per_node 4 finetune.py

This goes beyond the published protocol, which train.py follows. Films are
decoded once and kept as pixels; each epoch augments them at random, in batches
on the device. An average of the weights is validated and kept for infer.py.
What differs from config.yaml is in recipes/finetune.yaml; see docs/finetuning.md.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fracture.cli import run_script
from fracture.config import FinetuneConfig
from fracture.settings import training_settings


def arguments(argv: Sequence[str] | None = None) -> tuple[FinetuneConfig, Namespace]:
    return training_settings(FinetuneConfig, __doc__, argv)


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before torch is imported

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from fracture.data.batches import image_batches
from fracture.data.boxes import fracture_masks
from fracture.data.split_folder import open_split
from fracture.distributed import average_gradients
from fracture.evaluation.metrics import calibrate, fit_join
from fracture.features.extract import ImageSpec, cached_images, pick_compute
from fracture.models.backbone import configured_spec
from fracture.models.detector import HEAD_ALONE, Detector, join_scores, pooled_maps, predict_scores
from fracture.models.familiar import fit_familiar
from fracture.runs.checkpoint import provenance
from fracture.runs.folder import Run
from fracture.runs.trained import start_from
from fracture.training import Loss, train_epoch, validate


def build_loss(config: FinetuneConfig) -> Loss:
    """Class loss plus map loss, of a `Detector`'s outputs and the targets of `image_batches`."""

    def loss_function(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        labels, cells = targets[:, 0].long(), targets[:, 1:]
        loss = cross_entropy(outputs[:, :2], labels, label_smoothing=config.label_smoothing)
        weight = torch.where(cells == 1, config.cell_weight, 1.0) * ~cells.isnan()  # NaN: unknown
        map_loss = binary_cross_entropy_with_logits(outputs[:, 2:], cells.nan_to_num(), weight)
        return loss + config.box_weight * map_loss

    return loss_function


def build_optimizer(network: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """AdamW; biases and norms are not decayed. Frozen weights have no gradient and stay."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict] = [{"params": decayed}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, config: FinetuneConfig, n: int) -> LambdaLR:
    """The learning rate rises along a line, then falls to 0 along a cosine."""
    steps = config.epochs * math.ceil(n / config.batch_size)
    rise = config.warmup * steps

    def share(step: int) -> float:
        if step < rise:
            return min(1, (step + 1) / rise)
        return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    return LambdaLR(optimizer, share)


def add_to_step(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    average: nn.Module,
    schedule: LambdaLR,
    config: FinetuneConfig,
) -> None:
    """Clip before each step; move the learning rate and the averaged weights after it.

    These are hooks of the optimizer, so that both scripts share `train_epoch`.
    """
    pairs = [*zip(average.parameters(), network.parameters(), strict=True)]

    def before_step(*_: object) -> None:
        clip_grad_norm_([weight for _, weight in pairs], config.clip)

    @torch.no_grad()
    def after_step(*_: object) -> None:
        schedule.step()
        for averaged, weight in pairs:
            averaged.lerp_(weight, 1 - config.ema)

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_step_post_hook(after_step)


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    # Whatever can be refused is refused before the slow part.
    compute = pick_compute(config)
    folders = open_split(config, "train", "val")
    positive = folders[0].classes.index(config.positive_class)
    spec = configured_spec(config, compute.precision)
    torch.manual_seed(config.seed)
    has_map = config.box_weight > 0
    network = Detector(spec, positive, config.dropout, has_map, config.mirror).to(compute.device)
    network.freeze_first(config.frozen)
    origin = provenance(config, spec, folders[0])
    if config.init:
        start_from(config.init, network, origin)
    average = deepcopy(network)

    with Run(config, options.resume, origin) as run:
        pixels = ImageSpec(config.image_size, config.fit)
        train, val = cached_images(folders, pixels, Path(config.cache_dir), compute)
        masks = fracture_masks(train.rows, folders[0].split_dir, config)
        films = train.features, train.labels, masks
        loss_function, optimizer = build_loss(config), build_optimizer(network, config)
        schedule = build_schedule(optimizer, config, len(train.labels))
        others: dict[str, Any] = {"network": network, "schedule": schedule}
        run.load_state(average, optimizer, **others)
        add_to_step(optimizer, network, average, schedule, config)
        parallel = average_gradients(network)
        for epoch in run.epochs():
            # Seeded anew, so that an epoch's augmentation does not depend on those before it.
            torch.manual_seed(config.seed + epoch)
            batches = image_batches(films, network.map_shape, config, compute.device, epoch)
            train_loss = train_epoch(parallel, batches, loss_function, optimizer)
            scores, val_maps = predict_scores(average, val.features)
            join = fit_join(val.labels == positive, scores) if has_map else HEAD_ALONE
            logits = join_scores(scores, join, positive)
            metrics = {"epoch": epoch, "train_loss": train_loss}
            metrics |= validate(logits, val.labels, cross_entropy)  # always without the map
            chosen = calibrate(logits, val.labels, positive) | {"join": join}
            train_maps = pooled_maps(average, train.features[::8])  # an eighth of them is enough
            chosen["familiar"] = fit_familiar(train_maps, val_maps)
            run.save_epoch(metrics, average, optimizer, chosen, **others)


if __name__ == "__main__":
    run_script(main)
