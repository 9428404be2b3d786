"""How well the heat maps of test images, and the marks on them, find fracture boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit
from torch.utils.data import Subset

from fracture.cli import InputError
from fracture.config import Fit
from fracture.data.boxes import Box, read_boxes, to_film
from fracture.data.images import read_grey
from fracture.data.manifest import source_of
from fracture.data.split_folder import SplitFolder
from fracture.evaluation import metrics
from fracture.evaluation.cam import (
    MARK,
    TRUTH,
    Mark,
    draw_boxes,
    find_marks,
    in_frame,
    judge,
    overlay,
)
from fracture.evaluation.metrics import Array
from fracture.features.extract import Compute, FeatureSet
from fracture.models.classifier import Classifier

FALSE_MARKS = (0.25, 0.5, 1, 2)  # a film, at which FROC is reported

# By heading: name, probability, heat map.
Pictures = dict[str, list[tuple[str, float, Image.Image]]]


def explain_test(
    classifier: Classifier, folder: SplitFolder, images: FeatureSet, compute: Compute
) -> tuple[Pictures, list[dict[str, Any]]]:
    """Heat maps of some test films, and how those of all of them point at fractures.

    Args:
        classifier: from `load_classifier`.
        folder: the test folder.
        images: the readable images of it.
        compute: where the network runs.

    Returns:
        The pictures by heading, and each film's marks and heat as `localisation` takes them. A
        fractured film whose boxes are not known is left out: its marks may be right.

    Raises:
        InputError: an image has changed since the split was made.
    """
    is_positive = (images.labels == classifier.positive_index).numpy()
    p, rows, fit = classifier.p_positive(images.features), images.rows, classifier.spec.fit
    heats = heat_maps(classifier, folder, images, compute)
    marks = [find_marks(heat) for heat in heats]
    known = read_boxes(source_of(folder.split_dir))
    names = [Path(row.image).name for row in rows]
    boxed = {i: known[name] for i, name in enumerate(names) if is_positive[i] and name in known}

    def read_film(i: int) -> Image.Image:
        return read_grey((folder.split_dir / rows[i].path).read_bytes())

    def picture(i: int) -> Image.Image:
        film, shown = read_film(i), marks[i] if classifier.has_marks else []
        own = [to_film(mark.box, film.size, fit) for mark in shown]
        return draw_pair(film, heats[i], fit, own, boxed[i].boxes if i in boxed else [])

    pictures = {
        heading: [(names[i], p[i], picture(i)) for i in some]
        for heading, some in worst_cases(is_positive, p).items()
    }
    found = []
    for i, row in enumerate(rows):
        if is_positive[i] and i not in boxed:
            continue
        film = {"image": row.image, "group": row.group}
        film |= count_marks(marks[i], boxed[i].on_square(fit) if i in boxed else [])
        if i in boxed:
            film |= score_heat(in_frame(heats[i], read_film(i).size, fit), boxed[i].boxes)
        found.append(film)
    return pictures, found


def draw_pair(
    film: Image.Image, heat: Array, fit: Fit, marks: Sequence[Box], truth: Sequence[Box]
) -> Image.Image:
    """The film, and beside it the film with its heat map and marks; the true boxes on both."""
    right = overlay(film, heat, fit, longest=400)
    draw_boxes(right, marks, MARK)
    left = film.convert("RGB").resize(right.size)
    pair = Image.new("RGB", (2 * right.width, right.height))
    for x, half in ((0, left), (right.width, right)):
        draw_boxes(half, truth, TRUTH)
        pair.paste(half, (x, 0))
    return pair


def heat_maps(
    classifier: Classifier, folder: SplitFolder, images: FeatureSet, compute: Compute
) -> list[np.ndarray]:
    """The (h, w) heat map of each image, from a pass over its file if need be."""
    if (stored := classifier.stored_heat(images.features)) is not None:
        return [*stored.numpy()]
    readable = [i for i, row in enumerate(folder.rows) if row not in images.unreadable]

    def read_images(size: int, fit: Fit) -> Subset:
        return Subset(folder.resized(size, fit), readable)

    judged = judge(classifier, read_images, compute, known=images.features)
    heats = []
    for row, (_, heat, _, reason) in zip(images.rows, judged, strict=True):
        if reason:
            raise InputError(f"{folder.split_dir / row.path}: {reason}")
        heats.append(heat)
    return heats


def worst_cases(is_positive: np.ndarray, p: np.ndarray, most: int = 6) -> dict[str, list[int]]:
    """Positions of the most confident finds, misses and false alarms at 0.5, the clearest first."""
    order = np.argsort(p).tolist()
    return {
        "Clearest finds": [i for i in order[::-1] if is_positive[i] and p[i] >= 0.5][:most],
        "Worst misses": [i for i in order if is_positive[i] and p[i] < 0.5][:most],
        "Worst false alarms": [i for i in order[::-1] if not is_positive[i] and p[i] >= 0.5][:most],
    }


def contains(box: Box, x: Any, y: Any) -> Any:
    """Does a box contain the point? Of arrays of coordinates: which of the points?"""
    (left, top), (right, low) = box
    return (left <= x) & (x < right) & (top <= y) & (y < low)


def inside(boxes: Sequence[Box], shape: tuple[int, ...]) -> Array:
    """(height, width) bool: the pixels whose centres lie in a box."""
    y, x = ((np.arange(length) + 0.5) / length for length in shape)
    return np.any([contains(box, x, y[:, None]) for box in boxes], axis=0)


def count_marks(marks: Sequence[Mark], truth: Sequence[Box]) -> dict[str, Any]:
    """How many boxes a film has, and the scores of those found and of the false marks.

    A mark finds every box that its point lies in; in none, it is false.

    Args:
        marks: of the film.
        truth: its boxes, in shares of its square; none where nothing is fractured.
    """
    hits = [[mark.p for mark in marks if contains(box, *mark.point)] for box in truth]
    false = [m.p for m in marks if not any(contains(box, *m.point) for box in truth)]
    return {"boxes": len(truth), "found": [max(hit) for hit in hits if hit], "false": false}


def score_heat(heat: Array, boxes: Sequence[Box]) -> dict[str, Any]:
    """Does the hottest pixel lie in a box, and how much of the heat does?

    The pointing game (Zhang et al., IJCV 126:1084, 2018, without its tolerance) and the energy in
    the box (Wang et al., "Score-CAM", CVPRW 2020, sec. 4.3), beside those of maps without
    knowledge: uniform heat, or a blob in the middle (standard deviation: a quarter of a side).

    Args:
        heat: (height, width) log-odds; energy is their probability.
        boxes: in shares of the film.
    """
    in_box = inside(boxes, heat.shape)
    y, x = (np.linspace(-1, 1, length) for length in heat.shape)
    blob, p = np.exp(-2 * (x**2 + y[:, None] ** 2)), expit(heat)
    hit = {who: bool(in_box.flat[m.argmax()]) for who, m in (("map", heat), ("centred blob", blob))}
    energy = {
        who: float(m[in_box].sum() / m.sum()) for who, m in (("map", p), ("centred blob", blob))
    }
    return {"hit": hit, "energy": energy | {"uniform": float(in_box.mean())}}


def localisation(films: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The pointing game, the energy in the boxes and FROC; None if no film has a box.

    Uniform heat's share in the boxes is also the chance that a random pixel hits.

    Args:
        films: what `count_marks` says of each, its group, and of films with boxes `score_heat`.
    """
    boxed = [film for film in films if film["boxes"]]
    if not boxed:
        return None
    n, weights = len(boxed), metrics.group_bootstrap(np.array([film["group"] for film in boxed]))
    hits = {who: sum(film["hit"][who] for film in boxed) for who in boxed[0]["hit"]}
    game = {who: metrics.proportion(count, n) for who, count in hits.items()}
    energy = {
        who: metrics.metric(weights @ [film["energy"][who] for film in boxed] / weights.sum(1), n)
        for who in boxed[0]["energy"]
    }
    game["uniform"] = energy["uniform"]
    return {"pointing_game": game, "energy_in_box": energy, "froc": froc(films)}


def froc(films: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Free-response ROC (Bunch et al., Proc. SPIE 127:124, 1977): boxes found for false marks.

    Args:
        films: what `count_marks` says of each, and its group.

    Returns:
        `curve`, the false marks a film and the share of boxes found at every threshold, and
        `sensitivity` with its interval at each of `FALSE_MARKS`; n is the number of boxes.
    """
    events = [  # is it a box, its score, its film
        (kind == "found", p, i)
        for i, film in enumerate(films)
        for kind in ("found", "false")
        for p in film[kind]
    ]
    is_box, p, film_of = (np.array(column) for column in zip(*events, strict=True))
    weights = metrics.group_bootstrap(np.array([film["group"] for film in films]))
    count = weights @ np.array([film["boxes"] for film in films])
    true, false = metrics.cumulative_counts(is_box, p, weights[:, film_of])
    rate = false / weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a draw without boxes
        share = true / count[:, None]
    sensitivity, n = {}, int(count[0])
    for limit in FALSE_MARKS:
        last = (rate <= limit).sum(1) - 1
        reached = share[np.arange(len(share)), last]
        found = metrics.metric(reached, n)
        if found["value"] in (0, 1):  # all draws agree, so that they tell of no interval
            found = metrics.proportion(round(found["value"] * n), n)
        sensitivity[f"{limit:g}"] = found
    return {"sensitivity": sensitivity, "curve": [rate[0].tolist(), share[0].tolist()]}
