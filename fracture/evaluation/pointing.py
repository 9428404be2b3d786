"""Where a heat map points: marks on a film, and how well heat and marks find fracture boxes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import label, maximum_filter, zoom
from scipy.special import expit

from fracture.config import Fit
from fracture.data.boxes import Box
from fracture.evaluation.metrics import (
    Array,
    cumulative_counts,
    group_bootstrap,
    metric,
    proportion,
)

MOST_MARKS = 3  # on a film
CELL = 8  # a cell of a heat map is drawn finer, as so many pixels a side
FALSE_MARKS = (0.25, 0.5, 1, 2)  # a film, at which FROC is reported


@dataclass(frozen=True)
class Mark:
    """A hot place of an image, in shares of its square.

    Attributes:
        p: the heat's probability at its hottest point.
        point: that point, from the left and from the top.
        box: around all that is connected with the point and at least half as probable.
    """

    p: float
    point: tuple[float, float]
    box: Box


def in_frame(heat: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize an (h, w) heat map to a film of (width, height), undoing `fit`; float32."""
    side = max(size)
    frame = size if fit == "squash" else (side, side)
    left, top = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    resized = Image.fromarray(heat.astype(np.float32)).resize(frame, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size[0], top + size[1])))


def find_marks(heat: Array) -> list[Mark]:
    """The hottest places that lie apart, the hottest first, at most `MOST_MARKS`.

    Args:
        heat: (h, w) log-odds.
    """
    fine = zoom(heat.astype(np.float64), CELL, order=3, mode="nearest", grid_mode=True)
    p, (height, width) = expit(fine), fine.shape
    peaks = np.argwhere(p == maximum_filter(p, 2 * CELL + 1)).tolist()
    marks: list[Mark] = []
    taken = np.zeros(p.shape, bool)
    for y, x in sorted(peaks, key=lambda peak: -p[tuple(peak)]):
        if taken[y, x] or len(marks) == MOST_MARKS:
            continue
        areas, _ = label((p >= p[y, x] / 2) & ~taken)
        area = areas == areas[y, x]
        taken |= area
        rows, columns = np.flatnonzero(area.any(1)), np.flatnonzero(area.any(0))
        left, right = columns[0] / width, (columns[-1] + 1) / width
        top, low = rows[0] / height, (rows[-1] + 1) / height
        point = (x + 0.5) / width, (y + 0.5) / height
        marks.append(Mark(float(p[y, x]), point, (left, top, right, low)))
    return marks


def inside(boxes: list[Box], shape: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: the pixels whose centres lie in a box."""
    y = (np.arange(shape[0]) + 0.5)[:, None] / shape[0]
    x = (np.arange(shape[1]) + 0.5)[None] / shape[1]
    masks = [(left <= x) & (x < right) & (top <= y) & (y < low) for left, top, right, low in boxes]
    return np.any(masks, axis=0)


def localisation(films: Iterable[tuple[np.ndarray, list[Box]]]) -> dict:
    """How often the hottest pixel lies in a box, and how much of the heat does.

    The pointing game (Zhang et al., IJCV 126:1084, 2018, without its tolerance) and the energy in
    the box (Wang et al., "Score-CAM", CVPRW 2020, sec. 4.3), beside those of maps without
    knowledge: uniform heat, or a blob in the middle (standard deviation: a quarter of a side).

    Args:
        films: (height, width) log-odds and boxes of each; energy is the heat's probability.
    """
    hits, energies = defaultdict(list), defaultdict(list)
    for heat, boxes in films:
        box = inside(boxes, heat.shape)
        y, x = (np.linspace(-1, 1, length) for length in heat.shape)
        blob = np.exp(-2 * (x[None] ** 2 + y[:, None] ** 2))
        for who, picture, energy in (("map", heat, expit(heat)), ("centred blob", blob, blob)):
            hits[who].append(bool(box.flat[picture.argmax()]))
            energies[who].append(energy[box].sum() / energy.sum())
        energies["uniform"].append(box.mean())  # also the chance that a random pixel hits
    n = len(energies["uniform"])
    weights = group_bootstrap(np.arange(n))
    game = {who: proportion(sum(h), n) for who, h in hits.items()}
    in_box = {who: metric(weights @ np.array(e) / n, n) for who, e in energies.items()}
    uniform = {"uniform": in_box["uniform"]}
    return {"pointing_game": game | uniform, "energy_in_box": in_box}


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
        hits = [[_contains(box, mark.point) for box in truth] for mark in own]
        found += [
            (False, mark.p, film) for mark, hit in zip(own, hits, strict=True) if not any(hit)
        ]
        for column in zip(*hits, strict=True):
            scores = [mark.p for mark, hit in zip(own, column, strict=True) if hit]
            found += [(True, max(scores), film)] if scores else []
    is_box, p, film_of = (np.array(column) for column in zip(*found, strict=True))
    weights = group_bootstrap(groups)
    count = weights @ np.array([len(truth) for truth in boxes])
    true, false = cumulative_counts(is_box, p, weights[:, film_of])
    rate = false / weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a draw without boxes
        share = true / count[:, None]
    sensitivity = {}
    for limit in FALSE_MARKS:
        last = (rate <= limit).sum(1, keepdims=True) - 1
        sensitivity[f"{limit:g}"] = metric(np.take_along_axis(share, last, 1)[:, 0], int(count[0]))
    return {"sensitivity": sensitivity, "curve": [rate[0].tolist(), share[0].tolist()]}


def _contains(box: Box, point: tuple[float, float]) -> bool:
    left, top, right, low = box
    return left <= point[0] < right and top <= point[1] < low
