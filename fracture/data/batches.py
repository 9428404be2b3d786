"""Batches of images, augmented on their device, with their targets."""

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import adaptive_max_pool2d, affine_grid, grid_sample
from tqdm import tqdm

from fracture.config import FinetuneConfig
from fracture.distributed import RANK, WORLD_SIZE


def augment(
    images: torch.Tensor, masks: torch.Tensor, config: FinetuneConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror, turn, shift and zoom each image with its mask; change the image's grey levels.

    The numbers are drawn on the CPU from torch's global generator, so they are the same on every
    device.

    Args:
        images: (N, H, W) uint8.
        masks: (N, h, w) uint8 of the same squares, in another resolution.
        config: how far each change goes.

    Returns:
        (N, H, W) float grey levels, and (N, h, w) float masks.
    """

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(len(images)) * 2 - 1) * limit

    mirror = torch.where(torch.rand(len(images)) < 0.5 * config.mirror, -1.0, 1.0)
    turn, zoom = uniform(math.radians(config.turn)), 1 + uniform(config.zoom)
    right, down = 2 * uniform(config.shift), 2 * uniform(config.shift)  # a side is 2 long
    gain, offset = 1 + uniform(config.contrast), 255 * uniform(config.brightness)
    cos, sin = torch.cos(turn) / zoom, torch.sin(turn) / zoom
    rows = [torch.stack([mirror * cos, -sin, right], 1), torch.stack([mirror * sin, cos, down], 1)]
    theta = torch.stack(rows, 1).to(images.device)

    def move(pictures: torch.Tensor) -> torch.Tensor:
        grid = affine_grid(theta, [len(pictures), 1, *pictures.shape[1:]], align_corners=False)
        return grid_sample(pictures[:, None].float(), grid, align_corners=False)[:, 0]

    moved = move(images)
    middle = moved.mean((1, 2), keepdim=True)
    gain, offset = (x.to(images.device)[:, None, None] for x in (gain, offset))
    grey = (moved - middle) * gain + middle + offset
    return grey.clamp(0, 255), move(masks)


def image_batches(
    films: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    map_shape: tuple[int, int],
    config: FinetuneConfig,
    device: torch.device,
    epoch: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Augmented batches in a new random order, with a progress bar.

    Of several processes each takes its share of every batch. The shares are of one size, so that
    the average of their gradients is the gradient of the batch; to that end a batch may
    lose its last images, and a last batch smaller than the number of processes is left out.

    Args:
        films: (N, H, W) uint8 images, (N,) class indices, and (N, m, m) masks of fractures.
        map_shape: (h, w) of the network's map.
        config: batch size and augmentation.
        device: of the batches.
        epoch: shown beside the progress bar.

    Yields:
        (n, H, W) float grey levels, and (n, 1 + h * w) float targets: the label, then 1 for each
        cell that a box touches, 0 for the others, and NaN where the mask is `UNKNOWN`.
    """
    images, labels, masks = films
    title, hidden = f"epoch {epoch}", RANK > 0 or None
    with tqdm(desc=title, total=len(labels), unit=" images", leave=False, disable=hidden) as bar:
        for index in torch.randperm(len(labels)).split(config.batch_size):
            index = index[: len(index) // WORLD_SIZE * WORLD_SIZE]
            if not len(index):  # fewer images than processes
                continue
            batch, mask = augment(images[index].to(device), masks[index].to(device), config)
            cells = adaptive_max_pool2d(mask, map_shape).flatten(1)
            cells = torch.where(cells > 1, torch.nan, (cells >= 0.5).float())
            targets = torch.cat([labels[index, None].to(device), cells], 1)
            yield batch[RANK::WORLD_SIZE], targets[RANK::WORLD_SIZE]
            bar.update(len(index))
