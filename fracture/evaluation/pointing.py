"""Where a heat map points: marks on a film, and how well heat and marks find fracture boxes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, label, maximum_filter, zoom
from scipy.special import expit

from fracture.config import Fit
from fracture.data.boxes import Box
from fracture.evaluation import metrics
from fracture.evaluation.metrics import Array

MOST_MARKS = 3  # on a film
CELL = 8  # a cell of a heat map is drawn finer, as so many pixels a side
FALSE_MARKS = (0.25, 0.5, 1, 2)  # a film, at which FROC is reported


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


def in_frame(heat: Array, size: tuple[int, int], fit: Fit) -> Array:
    """Resize an (h, w) heat map to a film of (width, height), undoing `fit`; float32."""
    side = max(size)
    frame = size if fit == "squash" else (side, side)
    left, top = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    resized = Image.fromarray(heat.astype(np.float32)).resize(frame, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size[0], top + size[1])))


def find_marks(heat: Array) -> list[Mark]:
    """The hottest places that lie apart, the hottest first.

    At most `MOST_MARKS`, each at least half as probable as the first.

    Args:
        heat: (h, w) log-odds.
    """
    p = expit(zoom(heat.astype(np.float64), CELL, order=3, mode="nearest", grid_mode=True))
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


def contains(box: Box, x: Any, y: Any) -> Any:
    """Does a box contain the point? Of arrays of coordinates: which of the points?"""
    (left, top), (right, low) = box
    return (left <= x) & (x < right) & (top <= y) & (y < low)


def inside(boxes: Sequence[Box], shape: tuple[int, ...]) -> Array:
    """(height, width) bool: the pixels whose centres lie in a box."""
    y, x = ((np.arange(length) + 0.5) / length for length in shape)
    return np.any([contains(box, x, y[:, None]) for box in boxes], axis=0)


def localisation(films: Iterable[tuple[Array, Sequence[Box]]]) -> dict[str, Any]:
    """How often the hottest pixel lies in a box, and how much of the heat does.

    The pointing game (Zhang et al., IJCV 126:1084, 2018, without its tolerance) and the energy in
    the box (Wang et al., "Score-CAM", CVPRW 2020, sec. 4.3), beside those of maps without
    knowledge: uniform heat, or a blob in the middle (standard deviation: a quarter of a side).

    Args:
        films: (height, width) log-odds and boxes of each; energy is the heat's probability.
    """
    hits, energies = defaultdict(list), defaultdict(list)
    for heat, boxes in films:
        in_box = inside(boxes, heat.shape)
        y, x = (np.linspace(-1, 1, length) for length in heat.shape)
        blob = np.exp(-2 * (x**2 + y[:, None] ** 2))
        for who, picture, energy in (("map", heat, expit(heat)), ("centred blob", blob, blob)):
            hits[who].append(bool(in_box.flat[picture.argmax()]))
            energies[who].append(energy[in_box].sum() / energy.sum())
        energies["uniform"].append(in_box.mean())  # also the chance that a random pixel hits
    n = len(energies["uniform"])
    weights = metrics.group_bootstrap(np.arange(n))
    game = {who: metrics.proportion(sum(h), n) for who, h in hits.items()}
    share = {who: metrics.metric(weights @ np.array(e) / n, n) for who, e in energies.items()}
    return {"pointing_game": game | {"uniform": share["uniform"]}, "energy_in_box": share}


def froc(
    marks: Sequence[Sequence[Mark]], boxes: Sequence[Sequence[Box]], groups: Array
) -> dict[str, Any]:
    """Free-response ROC (Bunch et al., Proc. SPIE 127:124, 1977): boxes found for false marks.

    A mark finds every box that its point lies in; in none, it is false.

    Args:
        marks: of each image.
        boxes: of each image, in shares of its square; none where nothing is fractured.
        groups: (N,) group of each image.

    Returns:
        `curve`, the false marks a film and the share of boxes found at every threshold, and
        `sensitivity` with its interval at each of `FALSE_MARKS`; n is the number of boxes.
    """
    found: list[tuple[bool, float, int]] = []  # is it a box, its score, its film
    for film, (own, truth) in enumerate(zip(marks, boxes, strict=True)):
        for mark in own:
            if not any(contains(box, *mark.point) for box in truth):
                found.append((False, mark.p, film))
        for box in truth:
            if scores := [mark.p for mark in own if contains(box, *mark.point)]:
                found.append((True, max(scores), film))
    is_box, p, film_of = (np.array(column) for column in zip(*found, strict=True))
    weights = metrics.group_bootstrap(groups)
    count = weights @ np.array([len(truth) for truth in boxes])
    true, false = metrics.cumulative_counts(is_box, p, weights[:, film_of])
    rate = false / weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a draw without boxes
        share = true / count[:, None]
    sensitivity = {}
    for limit in FALSE_MARKS:
        last = (rate <= limit).sum(1) - 1
        reached = share[np.arange(len(share)), last]
        sensitivity[f"{limit:g}"] = metrics.metric(reached, int(count[0]))
    return {"sensitivity": sensitivity, "curve": [rate[0].tolist(), share[0].tolist()]}
