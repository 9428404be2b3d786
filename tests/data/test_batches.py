"""Augmentation moves an image and its mask alike; batches hold each image once."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import avg_pool2d

import finetune
from fracture.config import FinetuneConfig
from fracture.data import batches
from fracture.data.batches import augment, image_batches
from fracture.data.boxes import UNKNOWN

CPU = torch.device("cpu")
NONE = [
    "--mirror=false",
    *(f"--{x}=0" for x in ("turn", "shift", "zoom", "contrast", "brightness")),
]


@pytest.fixture
def still() -> FinetuneConfig:
    """The settings with no augmentation."""
    return finetune.arguments(NONE)[0]


def blocks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """White blocks at other places on black images, and masks of them at a quarter of the size."""
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8)
    for i, mask in enumerate(masks):
        mask[i % 5 + 3 : i % 5 + 7, i % 4 + 4 : i % 4 + 10] = 1
    return masks.repeat_interleave(4, 1).repeat_interleave(4, 2) * 255, masks


@pytest.mark.parametrize(
    "change", [{"mirror": True}, {"turn": 30.0}, {"shift": 0.2}, {"zoom": 0.4}, {}], ids=str
)
def test_a_mask_moves_with_its_image(still: FinetuneConfig, change: dict) -> None:
    torch.manual_seed(0)
    images, masks = blocks(20)
    moved, moved_masks = augment(images, masks, replace(still, **change))
    assert torch.allclose(moved, images.float(), atol=1e-2) == (not change)
    shrunk = avg_pool2d(moved[:, None], 4)[:, 0] / 255
    assert (shrunk - moved_masks).abs().mean() < 0.02


def test_grey_levels_change_within_their_limits(still: FinetuneConfig) -> None:
    torch.manual_seed(0)
    images = torch.full((500, 8, 8), 100, dtype=torch.uint8)
    images[:, :4] = 150
    masks = torch.zeros(500, 4, 4)
    grey, _ = augment(images, masks, replace(still, contrast=0.2, brightness=0.1))
    step, middle = grey[:, 0, 0] - grey[:, 7, 0], grey.mean((1, 2)) - 125
    assert (step.min(), step.max()) == (pytest.approx(40, abs=0.5), pytest.approx(60, abs=0.5))
    assert (middle.abs().max(), middle.mean()) == (
        pytest.approx(25.5, abs=0.5),
        pytest.approx(0, abs=2),
    )


def test_a_last_batch_smaller_than_the_number_of_processes_is_left_out(
    still: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WORLD_SIZE", 4)
    images, masks = blocks(10)
    films = images, torch.arange(10) % 2, masks
    shares = image_batches(films, (4, 4), replace(still, batch_size=4), CPU, 1)
    assert [len(share) for share, _ in shares] == [1, 1]


def test_batches_hold_each_image_once_with_its_label_and_its_cells(still: FinetuneConfig) -> None:
    images, masks = blocks(10)
    images[:] = torch.arange(10)[:, None, None]
    masks[3] = UNKNOWN
    films = images, torch.arange(10) % 2, masks
    found = [*image_batches(films, (4, 4), replace(still, batch_size=4), CPU, 1)]
    assert [len(batch) for batch, _ in found] == [4, 4, 2]
    grey, targets = (torch.cat(part) for part in zip(*found, strict=True))
    order = grey[:, 20, 20].round().int().tolist()
    assert sorted(order) == [*range(10)]
    assert targets[:, 0].tolist() == [i % 2 for i in order]
    for i, cells in zip(order, targets[:, 1:].unflatten(1, (4, 4)), strict=True):
        touched = masks[i].unflatten(0, (4, 4)).unflatten(2, (4, 4)).amax((1, 3)).float()
        expected = torch.full((4, 4), torch.nan) if i == 3 else touched
        torch.testing.assert_close(cells, expected, equal_nan=True)


def test_cells_that_are_not_known_reach_no_weight(still: FinetuneConfig) -> None:
    outputs = torch.zeros(2, 6, requires_grad=True)
    targets = torch.tensor([[0, 1, 0, 0, 0], [0, *[torch.nan] * 4]])
    finetune.build_loss(still)(outputs, targets).backward()
    assert outputs.grad is not None
    assert (outputs.grad[0, 2:] != 0).all()
    assert (outputs.grad[1, 2:] == 0).all()
    assert outputs.grad[0, 2] == pytest.approx(-still.cell_weight * outputs.grad[0, 3].item())
