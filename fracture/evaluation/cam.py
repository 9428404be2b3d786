"""Heat maps over the images they explain, with marks and with the data set's own boxes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.special import expit
from torch.utils.data import Subset

from fracture.cli import InputError
from fracture.data.boxes import Box, read_boxes, to_film, to_square
from fracture.data.images import read_grey
from fracture.data.manifest import source_of
from fracture.data.split_folder import SplitFolder
from fracture.evaluation.pointing import find_marks, froc, in_frame, localisation
from fracture.features.extract import Compute, FeatureSet, run_batches
from fracture.models.classifier import Classifier

TRUTH, MARK = "#56B4E9", "#FFFFFF"  # colours of boxes

Films = dict[str, list[tuple[str, float, Image.Image]]]  # by heading: name, probability, heat map


def explain_test(
    classifier: Classifier, folder: SplitFolder, images: FeatureSet, compute: Compute
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
    boxed = [i for i in np.flatnonzero(is_positive).tolist() if names[i] in known]

    def read_film(i: int) -> Image.Image:
        return read_grey((folder.split_dir / rows[i].path).read_bytes())

    def picture(i: int) -> Image.Image:
        film = read_film(i)
        image = overlay(film, in_frame(heats[i], film.size, fit), longest=400)
        if i in boxed:
            draw_boxes(image, known[names[i]].boxes, TRUTH)
        if classifier.has_marks:
            draw_boxes(image, [to_film(mark.box, film.size, fit) for mark in marks[i]], MARK)
        return image

    films = {
        heading: [(names[i], p[i], picture(i)) for i in some]
        for heading, some in worst_cases(is_positive, p).items()
    }
    if not boxed:
        return films, None
    sizes = {i: read_film(i).size for i in boxed}
    in_film = ((in_frame(heats[i], sizes[i], fit), known[names[i]].boxes) for i in boxed)
    truth: list[list[Box]] = [[] for _ in rows]
    for i in boxed:
        truth[i] = [to_square(box, sizes[i], fit) for box in known[names[i]].boxes]
    groups = np.array([row.group for row in rows])
    return films, localisation(in_film) | {"froc": froc(marks, truth, groups)}


def heat_maps(
    classifier: Classifier, folder: SplitFolder, images: FeatureSet, compute: Compute
) -> list[np.ndarray]:
    """The (h, w) heat map of each image, from a pass over its file if need be."""
    if (stored := classifier.stored_heat(images.features)) is not None:
        return [*stored.numpy()]
    position = {row.path: i for i, row in enumerate(folder.rows)}
    films: Subset = Subset(folder, [position[row.path] for row in images.rows])
    spec, heats = classifier.spec, []
    network = spec.build(compute.device)

    def heat(batch: torch.Tensor) -> torch.Tensor:
        return classifier.explain(network, batch)[1]

    for _, maps, bad in run_batches(heat, films, spec.image_size, compute, "heat maps"):
        for i, reason in bad.items():
            path = folder.split_dir / images.rows[i].path
            raise InputError(f"{path}: {reason}")
        heats += [*maps]
    return heats


def draw_boxes(image: Image.Image, boxes: Iterable[Any], colour: str) -> None:
    """Draw boxes, in shares of the image, as outlines on it."""
    for box in boxes:
        corners = np.reshape(box, (2, 2)) * image.size
        ImageDraw.Draw(image).rectangle([*corners.ravel()], outline=colour, width=2)


def worst_cases(is_positive: np.ndarray, p: np.ndarray, most: int = 6) -> dict[str, list[int]]:
    """Positions of the most confident finds, misses and false alarms at 0.5, the clearest first."""
    order = np.argsort(p).tolist()
    return {
        "Clearest finds": [i for i in order[::-1] if is_positive[i] and p[i] >= 0.5][:most],
        "Worst misses": [i for i in order if is_positive[i] and p[i] < 0.5][:most],
        "Worst false alarms": [i for i in order[::-1] if not is_positive[i] and p[i] >= 0.5][:most],
    }


def overlay(film: Image.Image, heat: np.ndarray, longest: int | None = None) -> Image.Image:
    """The film with its heat map over it, RGB, at its own size or at most `longest` pixels.

    Inferno's lightness rises evenly, so the map reads alike with any colour vision.
    """
    p = expit(heat)[..., None]  # one scale for all films
    colour = matplotlib.colormaps["inferno"](p[..., 0])[..., :3] * 255
    blend = (1 - 0.65 * p) * np.asarray(film.convert("RGB")) + 0.65 * p * colour
    image = Image.fromarray(blend.astype(np.uint8))
    if longest:
        image.thumbnail((longest, longest))
    return image
