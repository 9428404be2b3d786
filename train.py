"""Train a 2-unit head on a frozen EfficientNet; keep the best-validated epoch.

    python train.py                        # EfficientNet-B6, ImageNet weights
    python train.py --backbone efficientnet-lite0 --lr 3e-4
    python train.py --resume NAME          # a run that was cut short

Each image passes the frozen backbone once, and its features stay in the cache;
the epochs run on those. All of a run goes into runs/NAME/, and to wandb.

The protocol is that of arXiv 2406.15958: 224 x 224 pixels squashed, ImageNet
mean and deviation, batches of 16, Adam at 0.001, cross-entropy, 20 epochs, best
epoch by validation accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fracture.cli import InputError, exit_status, shown
from fracture.config import Config, SelectBy, parse_settings, portable, settings_parser

if __name__ == "__main__":
    with exit_status():  # before the slow imports: --help and a wrong setting answer at once
        PARSER = settings_parser(__doc__, "[--resume RUN] ")
        PARSER.add_argument("--resume", metavar="RUN", help="go on with a run that was cut short")
        CONFIG, ARGUMENTS = parse_settings(PARSER)

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fracture.data.manifest import Row, Split, read_split
from fracture.evaluation.metrics import calibrated, choose_thresholds, fit_temperature
from fracture.features.cache import BLOCK, StoredFeatures
from fracture.features.distributed import rank
from fracture.features.extract import Recipe, cached_features, pick_device
from fracture.models.backbone import Head, class_margin, find_weights, head_logits
from fracture.runs.checkpoint import (
    begin_run,
    check_name,
    find_run,
    hold,
    resumed,
    save_checkpoint,
    set_latest,
    take_up,
)
from fracture.runs.history import append_history, cut_history
from fracture.runs.tracking import Tracker, pick_mode, tracking

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def main(config: Config, resume: str | None) -> None:
    # All that can be wrong is looked at before anything slow begins.
    split = read_split(Path(config.split_dir), "train", "val")
    if config.positive_class not in split.classes:
        raise InputError(f"positive_class is {config.positive_class!r}; allowed: {split.classes}")
    if resume is None:
        check_name(config.run)
    device, precision = pick_device(config.device, config.precision)
    wandb_mode = pick_mode(config.wandb_mode)
    weights = find_weights(config.backbone, config.weights, config.seed)
    if weights.path is None and rank() == 0:
        print("WARNING: the backbone's weights are random: good for timing, not for results")
    recipe = Recipe(config.backbone, weights, config.image_size, config.fit, precision)
    settings = asdict(config) | {"fractions": [*config.fractions]}  # as config.yaml will hold them
    passed_on = portable(settings)
    identity: dict[str, Any] = {  # what the checkpoints hold besides what is trained
        "settings": passed_on,
        "weights": weights.source,
        "recipe": recipe.describe(),
        "classes": split.classes,
        "positive_class": config.positive_class,
        "manifest_sha256": split.sha256,
    }
    run = None if resume is None else find_run(resume)
    # Held before it is read: what another process may still write must not be gone on from.
    held = hold(run) if run and rank() == 0 else None
    state = resumed(run, identity) if run else {}

    features, rows, unreadable = cached_features(
        split, recipe, Path(config.cache_dir), config.workers, device
    )
    if rank() > 0:  # of several processes the first goes on, the others have done their share
        return
    for row, reason in unreadable.items():
        print(f"set aside, unreadable: {shown(row.image)}: {reason}")
    identity["set_aside"] = sorted(row.image for row in unreadable)
    if state.get("set_aside", identity["set_aside"]) != identity["set_aside"]:
        raise InputError(f"{run}: other images could be read when the run began")
    train_set, (val_features, val_labels) = labelled(split, features, rows)

    # The head trains on one core: its steps are small, and a run repeats bit for bit.
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    head = Head(features.width, config.dropout)
    optimizer = torch.optim.Adam(head.parameters(), lr=config.lr, fused=True)
    if run and "head" in state:
        take_up(state, head, optimizer, run)
    trainable = sum(parameter.numel() for parameter in head.parameters())
    assert trainable == 2 * features.width + 2  # 4,610 for B6
    print(f"head: {trainable:,} parameters, {len(train_set[1]):,} images to train on")

    folder = run or begin_run(config.run, settings)
    held = held or hold(folder)
    if run:
        print(f"resumed after epoch {state.get('epoch', 0)} of {config.epochs}")
    print(f"run in {folder}\nif it is cut short: python train.py --resume {folder.name}")
    best = state.get("best", {})
    cut_history(folder, state.get("epoch", 0))
    with held, tracking(wandb_mode, config.wandb_project, folder, passed_on) as tracker:
        print(f"\n{'epoch':>5}{'train loss':>12}{'val loss':>10}{'val accuracy':>14}")
        for epoch in range(state.get("epoch", 0) + 1, config.epochs + 1):
            # Seeded anew, so that epoch 7's order and dropout do not depend on how 1 to 6 were run.
            torch.manual_seed(config.seed + epoch)
            train_loss = train_epoch(head, shuffled(*train_set, config.batch_size), optimizer)
            logits = head_logits(head, val_features)
            figures = {"epoch": epoch, "train_loss": train_loss, **validate(logits, val_labels)}
            is_best = not best or merit(figures, config.select_by) > merit(best, config.select_by)
            best = figures if is_best else best
            reached = identity | {"epoch": epoch, "head": head.state_dict(), "best": best}
            if is_best:
                positive = split.classes.index(config.positive_class)
                decision = choose_decision(logits, val_labels, positive)
                save_checkpoint(folder / "best.pt", reached | decision)
            append_history(folder, {**figures, "best": is_best})
            # Last: what it says is reached is on disk by now, and a resumed run goes on from there.
            save_checkpoint(folder / "last.pt", reached | {"optimizer": optimizer.state_dict()})
            log_epoch(figures, is_best, tracker)
        tracker.summarise({f"best_{name}": value for name, value in best.items()})
    set_latest(folder)
    accuracy, loss = best["val_accuracy"], best["val_loss"]
    print(f"\nbest epoch {best['epoch']}: validation accuracy {accuracy:.4f}, loss {loss:.4f}")
    print("next: python infer.py")


def labelled(
    split: Split, features: StoredFeatures, rows: Sequence[Row]
) -> list[tuple[StoredFeatures, torch.Tensor]]:
    """The features and class indices of train and of val.

    Raises:
        InputError: train or val lacks a class.
    """
    labels = torch.tensor([split.classes.index(row.label) for row in rows])
    is_train = torch.tensor([row.split == "train" for row in rows])
    for name, mask in (("train", is_train), ("val", ~is_train)):
        for index, label in enumerate(split.classes):
            if not (labels[mask] == index).any():
                raise InputError(f"{split.folder}: {name} has no readable image of {label}")
    return [(features.subset(mask), labels[mask]) for mask in (is_train, ~is_train)]


def shuffled(
    features: torch.Tensor | StoredFeatures, labels: torch.Tensor, batch_size: int
) -> Batches:
    """Batches in a new random order, from torch's global generator; the last may be short."""
    together = max(1, BLOCK // batch_size) * batch_size  # are read at a time
    for block in torch.randperm(len(labels)).split(together):
        inputs, targets = features[block].split(batch_size), labels[block].split(batch_size)
        yield from zip(inputs, targets, strict=True)


def train_epoch(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer) -> float:
    """One pass of gradient steps, on features for a head or on images for a whole classifier.

    Returns:
        The mean cross-entropy over the images (not over batches: the last one may be short).

    Raises:
        InputError: the loss is not finite.
    """
    model.train()
    total, count = 0.0, 0
    for step, (inputs, labels) in enumerate(batches):
        loss = cross_entropy(model(inputs), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {step}; try a smaller lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += value * len(labels)
        count += len(labels)
    return total / count


def validate(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Mean cross-entropy and accuracy, as `val_loss` and `val_accuracy`.

    Raises:
        InputError: the loss is not finite.
    """
    correct = int((logits.argmax(1) == labels).sum())
    loss = cross_entropy(logits, labels).item()
    if not math.isfinite(loss):
        raise InputError(f"the validation loss is {loss}; try a smaller lr")
    return {"val_loss": loss, "val_accuracy": correct / len(labels)}


def choose_decision(logits: torch.Tensor, labels: torch.Tensor, positive: int) -> dict[str, Any]:
    """What turns logits into decisions, chosen on validation images: temperature and thresholds."""
    margin = class_margin(logits, positive)
    is_positive = (labels == positive).numpy()
    temperature = fit_temperature(is_positive, margin)
    thresholds = choose_thresholds(is_positive, calibrated(margin, temperature))
    return {"temperature": temperature, "thresholds": thresholds}


def merit(figures: dict[str, float], select_by: SelectBy) -> tuple[float, float]:
    """What makes an epoch better: the chosen figure, then the other; of equals the first stays."""
    accuracy, loss = figures["val_accuracy"], figures["val_loss"]
    return (accuracy, -loss) if select_by == "val_accuracy" else (-loss, accuracy)


def log_epoch(figures: dict[str, float], is_best: bool, tracker: Tracker) -> None:
    """To the terminal and to wandb, once it is saved."""
    epoch, train_loss, val_loss, val_accuracy = figures.values()
    mark = "  best" if is_best else ""
    print(f"{epoch:5}{train_loss:12.4f}{val_loss:10.4f}{val_accuracy:14.4f}{mark}")
    tracker.log(figures, step=int(epoch))


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS.resume)
