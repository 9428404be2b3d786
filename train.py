"""Train a 2-unit head on a frozen EfficientNet; keep the best epoch on validation.

    python train.py                        # EfficientNet-B6, ImageNet weights
    python train.py --backbone efficientnet-lite0 --lr 3e-4
    python train.py --resume NAME          # go on with an interrupted run

The frozen backbone sees each image once, and its features stay in the cache;
the epochs run on those. Everything goes into runs/NAME/, and to wandb.

The protocol is that of arXiv 2406.15958: 224 x 224 pixels squashed, ImageNet
mean and deviation, batches of 16, Adam at 0.001, cross-entropy, 20 epochs, best
epoch by validation accuracy.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import Namespace

from fracture.cli import run_script
from fracture.config import Config
from fracture.settings import training_settings


def arguments(argv: Sequence[str] | None = None) -> tuple[Config, Namespace]:
    return training_settings(Config, __doc__, argv)


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before torch is imported

import torch
from torch import nn

from fracture.data.split_folder import open_split
from fracture.distributed import RANK
from fracture.evaluation.metrics import calibrate
from fracture.features.extract import cached_features, pick_compute
from fracture.models.backbone import configured_spec
from fracture.models.head import build_head, predict_logits
from fracture.runs.checkpoint import provenance
from fracture.runs.folder import Run
from fracture.training import minibatches, train_epoch, validate

loss_function = nn.CrossEntropyLoss()


def build_optimizer(head: nn.Module, config: Config) -> torch.optim.Optimizer:
    return torch.optim.Adam(head.parameters(), lr=config.lr, fused=True)


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    # Whatever can be refused is refused before the slow part.
    compute = pick_compute(config)
    folders = open_split(config, "train", "val")
    positive = folders[0].classes.index(config.positive_class)
    spec = configured_spec(config, compute.precision)
    features = partial(cached_features, folders, spec, Path(config.cache_dir), compute)
    if RANK > 0:  # torchrun's other processes only compute their share of the features
        features()
        return

    with Run(config, options.resume, provenance(config, spec, folders[0])) as run:
        train, val = features()
        # The head's steps are small: one core is fastest, and repeats a run bit for bit.
        torch.set_num_threads(1)
        torch.manual_seed(config.seed)
        head = build_head(train.features.shape[1], config.dropout)
        optimizer = build_optimizer(head, config)
        run.load_state(head, optimizer)
        for epoch in run.epochs():
            # Seeded anew, so that an epoch's order and dropout do not depend on those before it.
            torch.manual_seed(config.seed + epoch)
            batches = minibatches(train.features, train.labels, config.batch_size)
            train_loss = train_epoch(head, batches, loss_function, optimizer)
            logits = predict_logits(head, val.features)
            metrics = {"epoch": epoch, "train_loss": train_loss}
            metrics |= validate(logits, val.labels, loss_function)
            calibration = calibrate(logits, val.labels, positive)
            run.save_epoch(metrics, head, optimizer, calibration)


if __name__ == "__main__":
    run_script(main)
