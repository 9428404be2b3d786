"""Heat maps, drawn over the images they explain, with marks and the data set's own boxes."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.special import expit
from torch.utils.data import Dataset, Subset

from fracture.cli import InputError
from fracture.config import Fit
from fracture.data.boxes import Box, read_boxes, to_film
from fracture.data.images import read_grey
from fracture.data.manifest import source_of
from fracture.evaluation.pointing import find_marks, froc, in_frame, localisation
from fracture.features.extract import Compute, FeatureSet, run_batches
from fracture.models.classifier import Classifier

if TYPE_CHECKING:  # torchvision takes a second to import, and a single film does not need it
    from fracture.data.split_folder import SplitFolder

TRUTH, MARK = "#56B4E9", "#FFFFFF"  # colours of boxes

Films = dict[str, list[tuple[str, float, Image.Image]]]  # by heading: name, probability, heat map


def judge(
    classifier: Classifier, images: Dataset, compute: Compute, title: str, with_heat: bool = True
) -> Iterator[tuple[Any, Any, str]]:
    """What a classifier says of images, in order.

    Args:
        classifier: from `load_classifier`.
        images: as for `run_batches`.
        compute: where the network runs.
        title: of the progress bar.
        with_heat: compute the heat maps; else they are empty.

    Yields:
        An image's calibrated probability, its (h, w) heat map in log-odds, and ""; or None, None,
        and why it is unreadable.
    """
    spec = classifier.spec
    network = spec.build(compute.device)

    def features_and_heat(batch: torch.Tensor) -> torch.Tensor:
        features, heat = classifier.explain(network, batch)
        return torch.cat([features, heat.flatten(1)], 1)

    model = features_and_heat if with_heat else network
    for done, outputs, bad in run_batches(model, images, spec.image_size, compute, title):
        features, maps = np.hsplit(outputs, [spec.width])
        p = classifier.p_positive(torch.from_numpy(features).float()).tolist()
        side = math.isqrt(maps.shape[1])  # a square's map is square
        good = zip(p, maps.reshape(len(done), side, side), strict=True)
        for i in sorted([*done, *bad]):
            yield (None, None, bad[i]) if i in bad else (*next(good), "")


def explain_test(
    classifier: Classifier, folder: "SplitFolder", images: FeatureSet, compute: Compute
) -> tuple[Films, dict[str, Any] | None]:
    """Heat maps of some test films, and how well those of all of them point at fractures.

    Args:
        classifier: from `load_classifier`.
        folder: the test folder.
        images: the readable images of it.
        compute: where the network runs.

    Returns:
        The films by heading, and the `localisation`, None if the data set has no boxes.

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
        film = read_film(i)
        image = overlay(film, heats[i], fit, longest=400)
        if i in boxed:
            draw_boxes(image, boxed[i].boxes, TRUTH)
        if classifier.has_marks:
            draw_boxes(image, [to_film(mark.box, film.size, fit) for mark in marks[i]], MARK)
        return image

    films = {
        heading: [(names[i], p[i], picture(i)) for i in some]
        for heading, some in worst_cases(is_positive, p).items()
    }
    if not boxed:
        return films, None
    scored = ((in_frame(heats[i], read_film(i).size, fit), film.boxes) for i, film in boxed.items())
    truth = [boxed[i].on_square(fit) if i in boxed else [] for i in range(len(rows))]
    groups = np.array([row.group for row in rows])
    return films, localisation(scored) | {"froc": froc(marks, truth, groups)}


def heat_maps(
    classifier: Classifier, folder: "SplitFolder", images: FeatureSet, compute: Compute
) -> list[np.ndarray]:
    """The (h, w) heat map of each image, from a pass over its file if need be."""
    if (stored := classifier.stored_heat(images.features)) is not None:
        return [*stored.numpy()]
    readable = [i for i, row in enumerate(folder.rows) if row not in images.unreadable]
    judged = judge(classifier, Subset(folder, readable), compute, "heat maps")
    heats = []
    for row, (_, heat, reason) in zip(images.rows, judged, strict=True):
        if reason:
            raise InputError(f"{folder.split_dir / row.path}: {reason}")
        heats.append(heat)
    return heats


def draw_boxes(image: Image.Image, boxes: Iterable[Box], colour: str) -> None:
    """Draw boxes, in shares of the image, as outlines on it."""
    for box in boxes:
        corners = (box * image.size).ravel()
        ImageDraw.Draw(image).rectangle([*corners], outline=colour, width=2)


def worst_cases(is_positive: np.ndarray, p: np.ndarray, most: int = 6) -> dict[str, list[int]]:
    """Positions of the most confident finds, misses and false alarms at 0.5, the clearest first."""
    order = np.argsort(p).tolist()
    return {
        "Clearest finds": [i for i in order[::-1] if is_positive[i] and p[i] >= 0.5][:most],
        "Worst misses": [i for i in order if is_positive[i] and p[i] < 0.5][:most],
        "Worst false alarms": [i for i in order[::-1] if not is_positive[i] and p[i] >= 0.5][:most],
    }


def overlay(
    film: Image.Image, heat: np.ndarray, fit: Fit, longest: int | None = None
) -> Image.Image:
    """The film with its (h, w) heat map over it, RGB, at its own size or at most `longest` pixels.

    Inferno's lightness rises evenly, so the map reads alike with any colour vision.
    """
    from matplotlib import colormaps  # half a second, which a table of predictions need not wait

    p = expit(in_frame(heat, film.size, fit))[..., None]  # one scale for all films
    colour = colormaps["inferno"](p[..., 0])[..., :3] * 255
    blend = (1 - 0.65 * p) * np.asarray(film.convert("RGB")) + 0.65 * p * colour
    image = Image.fromarray(blend.astype(np.uint8))
    if longest:
        image.thumbnail((longest, longest))
    return image
