"""The epoch: minibatches, gradient steps, validation."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from fracture.cli import InputError

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def minibatches(inputs: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Iterator:
    """(inputs, labels) in a new random order, from torch's global generator; the last is short."""
    for index in torch.randperm(len(labels)).split(batch_size):
        yield inputs[index], labels[index]


def train_epoch(
    model: nn.Module, batches: Batches, loss_function: Loss, optimizer: torch.optim.Optimizer
) -> float:
    """One pass of gradient steps, on features for a head or on images for a whole classifier.

    Returns:
        The mean loss over the images (not over batches: the last one may be short).

    Raises:
        InputError: the loss is not finite.
    """
    model.train()
    total, count = 0.0, 0
    for step, (inputs, labels) in enumerate(batches):
        loss = loss_function(model(inputs), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {step}; try a smaller lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += value * len(labels)
        count += len(labels)
    return total / count


def validate(logits: torch.Tensor, labels: torch.Tensor, loss_function: Loss) -> dict[str, float]:
    """`val_loss`, `val_accuracy` and `val_roc_auc` of (N, 2) logits; both classes are present.

    Raises:
        InputError: the loss is not finite.
    """
    from sklearn.metrics import roc_auc_score  # half a second that infer.py is spared

    loss = loss_function(logits, labels).item()
    if not math.isfinite(loss):
        raise InputError(f"the validation loss is {loss}; try a smaller lr")
    correct = int((logits.argmax(1) == labels).sum())
    auc = float(roc_auc_score(labels, (logits[:, 1] - logits[:, 0]).numpy()))
    return {"val_loss": loss, "val_accuracy": correct / len(labels), "val_roc_auc": auc}


def selection_key(metrics: dict[str, float], select_by: str) -> tuple[float, float]:
    """What makes an epoch the best: the chosen metric, then another; of equals the first wins."""
    accuracy, loss = metrics["val_accuracy"], metrics["val_loss"]
    return (-loss, accuracy) if select_by == "val_loss" else (metrics[select_by], -loss)
