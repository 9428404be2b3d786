"""An epoch: minibatches, means over images, and losses that are numbers."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fracture.cli import InputError
from fracture.training import minibatches, selection_key, train_epoch, validate


def test_minibatches_cover_every_row_once_with_its_label_in_a_new_order() -> None:
    inputs, labels = torch.arange(50.0).unsqueeze(1), torch.arange(50)
    orders = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        batches = [*minibatches(inputs, labels, 16)]
        assert [len(y) for _, y in batches] == [16, 16, 16, 2]
        assert all(torch.equal(x.squeeze(1), y.float()) for x, y in batches)
        orders.append(torch.cat([y for _, y in batches]).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [*range(50)]


def test_an_epoch_takes_a_step_a_batch_and_returns_the_mean_loss_over_images() -> None:
    """Against gradient descent written out; the last batch is short."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).eval()
    weight, bias = (p.detach().clone() for p in model.parameters())
    inputs, labels = torch.randn(5, 3) * 9, torch.tensor([0, 1, 1, 0, 1])
    batches, losses = [(inputs[:4], labels[:4]), (inputs[4:], labels[4:])], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found = train_epoch(model, batches, cross_entropy, optimizer)
    for x, y in batches:
        p = (x @ weight.T + bias).softmax(1)
        losses += (-p[range(len(y)), y].log()).tolist()
        error = p - one_hot(y, 2)
        weight, bias = weight - 0.5 * error.T @ x / len(y), bias - 0.5 * error.mean(0)
    assert found == pytest.approx(sum(losses) / 5)
    torch.testing.assert_close([p.detach() for p in model.parameters()], [weight, bias])
    assert model.training


def test_a_loss_that_is_not_finite_stops_at_its_step_and_reaches_no_weight() -> None:
    model, good = torch.nn.Linear(2, 2), (torch.ones(3, 2), torch.tensor([0, 1, 0]))
    bad = torch.full((3, 2), math.inf), good[1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"^the loss is nan at step 2; try a smaller lr$"):
        train_epoch(model, [good, good, bad], cross_entropy, optimizer)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with pytest.raises(InputError, match=r"^the validation loss is nan; try a smaller lr$"):
        validate(*bad, cross_entropy)


def test_validation_counts_correct_decisions_and_the_best_epoch_has_most() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    expected = sum(math.log1p(math.exp(-d)) for d in (2, 1, -3, 4)) / 4
    metrics = validate(logits, torch.tensor([0, 1, 1, 1]), cross_entropy)
    names = ("val_accuracy", "val_loss", "val_roc_auc")
    assert [metrics[name] for name in names] == pytest.approx([0.75, expected, 2 / 3])
    rows = ((0.9, 0.3, 0.8), (0.9, 0.2, 0.7), (0.95, 0.3, 0.7))
    epochs = [dict(zip(names, row, strict=True)) for row in rows]
    for select_by, best in zip(names, ([2, 1, 0], [1, 2, 0], [0, 1, 2]), strict=True):
        keys = [selection_key(epoch, select_by) for epoch in epochs]
        assert sorted(range(3), key=keys.__getitem__, reverse=True) == best
