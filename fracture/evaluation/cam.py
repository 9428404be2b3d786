"""Heat maps: made, marked and drawn over the images that they explain."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from fracture.config import Fit
from fracture.data.boxes import Box
from fracture.features.extract import Compute, run_batches
from fracture.models.backbone import FeatureSpec
from fracture.models.classifier import Classifier

MOST_MARKS = 3  # on a film
CELL = 8  # a cell of a heat map is drawn finer, as so many pixels a side
TRUTH, MARK = "#56B4E9", "#FFFFFF"  # colours of boxes


@dataclass(frozen=True)
class Mark:
    """A hot place of an image, in shares of its square.

    Attributes:
        p: the heat's probability at its hottest point.
        point: that point, from the left and from the top.
        box: around all that is connected with the point and at least 0.9 times as probable.
    """

    p: float
    point: tuple[float, float]
    box: Box


def judge(
    classifier: Classifier,
    read_images: Callable[[int, Fit], Dataset],
    compute: Compute,
    with_heat: bool = True,
    known: torch.Tensor | None = None,
) -> Iterator[tuple[Any, Any, bool, str]]:
    """What a classifier says of images, in order.

    Args:
        classifier: from `load_classifier`.
        read_images: image size and fit to the images as `run_batches` takes them.
        compute: where the network runs.
        with_heat: compute the heat maps; else they are empty.
        known: the (N, width) features, where only the heat maps are missing.

    Yields:
        An image's calibrated probability, its (h, w) heat map in log-odds, whether it is unlike the
        films of the training (known only with the heat map), and ""; or None, None, False, and why
        it is unreadable.
    """
    spec = classifier.spec
    first, *more = spec.views
    others = [
        _features(view, read_images(view.image_size, view.fit), compute)
        for view in (more if known is None else [])
    ]
    network, images = first.build(compute.device), read_images(first.image_size, first.fit)

    def features_and_heat(batch: torch.Tensor) -> torch.Tensor:
        features, heat, odd = classifier.explain(network, batch)
        return torch.cat([features, heat.flatten(1), odd[:, None]], 1)

    model = features_and_heat if with_heat else network
    for done, outputs, bad in run_batches(model, images, first.image_size, compute, first.title):
        parts = np.hsplit(outputs, [first.width, outputs.shape[1] - with_heat])
        features, maps, odd = map(torch.from_numpy, parts)
        if known is None:
            features = spec.merge([features.float(), *(other[done] for other in others)])
        else:
            features = known[done]
        side = math.isqrt(maps.shape[1])  # maps are square
        p, heats = classifier.conclude(features, maps.reshape(len(done), side, side))
        good = zip(p.tolist(), heats.numpy(), odd.any(1).tolist(), strict=True)
        for i in sorted([*done, *bad]):
            yield (None, None, False, bad[i]) if i in bad else (*next(good), "")


def _features(view: FeatureSpec, images: Dataset, compute: Compute) -> torch.Tensor:
    """(N, width) features of one view; zeros for unreadable images."""
    found = torch.zeros(len(images), view.width)  # type: ignore[arg-type]
    network = view.build(compute.device)
    for done, vectors, _ in run_batches(network, images, view.image_size, compute, view.title):
        found[done] = torch.from_numpy(vectors)
    return found


def in_frame(heat: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize an (h, w) heat map to a film of (width, height), undoing `fit`; float32."""
    side = max(size)
    frame = size if fit == "squash" else (side, side)
    left, top = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    resized = Image.fromarray(heat.astype(np.float32)).resize(frame, Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + size[0], top + size[1])))


def probabilities(heat: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """`in_frame` of log-odds, as (height, width) float32 probabilities."""
    return torch.from_numpy(in_frame(heat, size, fit)).sigmoid().numpy()


def find_marks(heat: np.ndarray) -> list[Mark]:
    """The hottest places that lie apart, the hottest first.

    At most `MOST_MARKS`, each at least half as probable as the first.

    Args:
        heat: (h, w) log-odds.
    """
    # Imported here: scipy takes a third of a second, and many films have no marks.
    from scipy.ndimage import find_objects, label, maximum_filter, zoom

    fine = zoom(heat.astype(np.float64), CELL, order=3, mode="nearest", grid_mode=True)
    p = torch.from_numpy(fine).sigmoid().numpy()
    height, width = p.shape
    hot = (p == maximum_filter(p, 2 * CELL + 1)) & (p >= p.max() / 2)
    marks: list[Mark] = []
    taken = np.zeros(p.shape, bool)
    for y, x in sorted(np.argwhere(hot).tolist(), key=lambda peak: -p[tuple(peak)]):
        if taken[y, x] or len(marks) == MOST_MARKS:
            continue
        areas, _ = label((p >= 0.9 * p[y, x]) & ~taken)
        rows, columns = find_objects(areas)[areas[y, x] - 1]
        point = (x + 0.5) / width, (y + 0.5) / height
        box = np.array([(columns.start, rows.start), (columns.stop, rows.stop)]) / (width, height)
        marks.append(Mark(float(p[y, x]), point, box))
        taken |= areas == areas[y, x]
    return marks


def draw_boxes(image: Image.Image, boxes: Iterable[Box], colour: str) -> None:
    """Draw boxes, in shares of the image, as outlines on it."""
    for box in boxes:
        corners = (box * image.size).ravel()
        ImageDraw.Draw(image).rectangle([*corners], outline=colour, width=2)


def overlay(
    film: Image.Image, heat: np.ndarray, fit: Fit, longest: int | None = None, strength: float = 0.5
) -> Image.Image:
    """The film with its (h, w) heat map over it, RGB, at its own size or at most `longest` pixels.

    At a strength of 0.5 bone stays visible where the map is hottest.

    Inferno's lightness rises evenly, so the map reads alike with any colour vision.
    """
    from matplotlib import colormaps  # half a second that a table of predictions is spared

    p = probabilities(heat, film.size, fit)[..., None]  # one scale for all films
    colour = colormaps["inferno"](p[..., 0])[..., :3] * 255
    blend = (1 - strength * p) * np.asarray(film.convert("RGB")) + strength * p * colour
    image = Image.fromarray(blend.astype(np.uint8))
    if longest:
        image.thumbnail((longest, longest))
    return image
