"""Heat maps over the images they explain, and how well they point at FracAtlas' own boxes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from scipy.special import expit
from torch.utils.data import Subset

from fracture.cli import InputError, one_line
from fracture.config import Fit
from fracture.data.images import read_grey
from fracture.data.manifest import Row, source_of
from fracture.data.split_folder import SplitFolder
from fracture.evaluation.metrics import Metric, group_bootstrap, metric, proportion
from fracture.features.extract import Compute, run_batches
from fracture.models.backbone import build_backbone
from fracture.models.classifier import Classifier

BOXES = "Annotations/COCO JSON/COCO_fracture_masks.json"

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height
Film = tuple[str, float, Image.Image]  # file name, probability, the film with its heat map


def explain_test(
    classifier: Classifier,
    folder: SplitFolder,
    rows: Sequence[Row],
    p: np.ndarray,
    compute: Compute,
) -> tuple[dict[str, list[Film]], dict[str, Any] | None]:
    """Heat maps of the worst misses and false alarms, and how well those of fractures point.

    Args:
        classifier: from `load_classifier`; its head is linear.
        folder: the test folder.
        rows: the N readable images of it.
        p: (N,) their probabilities.
        compute: where the backbone runs.

    Returns:
        The films by heading, and the `localisation`, None if the data set has no boxes.

    Raises:
        InputError: an image has changed since the split was made.
    """
    is_positive = np.array([row.label == classifier.classes[0] for row in rows])
    worst = worst_cases(is_positive, p)
    source = source_of(folder.split_dir)
    boxes = read_boxes(source.with_suffix("") if source.suffix == ".zip" else source)
    boxed = [i for i in np.flatnonzero(is_positive).tolist() if Path(rows[i].image).name in boxes]
    wanted = sorted({*boxed, *(i for some in worst.values() for i in some)})
    position = {row.path: i for i, row in enumerate(folder.rows)}
    images: Subset = Subset(folder, [position[rows[i].path] for i in wanted])
    backbone, size = build_backbone(classifier.spec, compute.device), classifier.spec.image_size
    heats: dict[int, np.ndarray] = {}
    for done, maps, bad in run_batches(
        lambda batch: classifier.cam(backbone.feature_maps(batch)),
        images, size, compute, "heat maps",
    ):  # fmt: skip
        if bad:
            first, reason = next(iter(bad.items()))
            raise InputError(f"{folder.split_dir / rows[wanted[first]].path}: {reason}")
        heats |= {wanted[i]: heat for i, heat in zip(done, maps, strict=True)}

    def film_and_heat(i: int) -> tuple[Image.Image, np.ndarray]:
        film = read_grey((folder.split_dir / rows[i].path).read_bytes())
        return film, in_frame(heats[i], film.size, classifier.spec.fit)

    def name(i: int) -> str:
        return Path(rows[i].image).name

    films = {
        heading: [(name(i), float(p[i]), overlay(*film_and_heat(i), longest=400)) for i in some]
        for heading, some in worst.items()
    }
    scored = ((film_and_heat(i)[1], boxes[name(i)]) for i in boxed)
    return films, localisation(scored) if boxed else None


def worst_cases(is_positive: np.ndarray, p: np.ndarray, most: int = 6) -> dict[str, list[int]]:
    """Positions of the most confident misses and false alarms at 0.5, the worst first."""
    order = np.argsort(p).tolist()
    return {
        "Worst misses": [i for i in order if is_positive[i] and p[i] < 0.5][:most],
        "Worst false alarms": [i for i in order[::-1] if not is_positive[i] and p[i] >= 0.5][:most],
    }


def in_frame(heat: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Resize an (h, w) heat map to a film of (width, height), undoing `fit`; float32."""
    side = max(size)
    square = Image.fromarray(heat.astype(np.float32))
    if fit == "squash":
        return np.asarray(square.resize(size, Image.Resampling.BICUBIC))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    padded = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(padded.crop((left, top, left + size[0], top + size[1])))


def overlay(film: Image.Image, heat: np.ndarray, longest: int | None = None) -> Image.Image:
    """The film with its heat map over it, RGB, at its own size or at most `longest` pixels.

    Inferno's lightness rises evenly, so the map reads alike with any colour vision.
    """
    grey = np.asarray(film.convert("RGB"), dtype=np.float32)
    p = expit(heat)  # one scale for all films
    colour = matplotlib.colormaps["inferno"](p)[..., :3] * 255
    share = 0.65 * p[..., None]
    image = Image.fromarray(((1 - share) * grey + share * colour).astype(np.uint8))
    if longest:
        image.thumbnail((longest, longest))
    return image


def read_boxes(data_root: Path) -> dict[str, list[Box]]:
    """The fracture boxes of each image, by file name; empty if the data set has no boxes.

    Raises:
        InputError: the file is there, but is not FracAtlas' own.
    """
    file = data_root / BOXES
    if not file.is_file():
        return {}
    boxes = defaultdict(list)
    try:
        coco = json.loads(file.read_text())
        images = {image["id"]: image for image in coco["images"]}
        for annotation in coco["annotations"]:
            image, (left, top, width, height) = images[annotation["image_id"]], annotation["bbox"]
            w, h = image["width"], image["height"]  # of the original film, which may be larger
            box = (left / w, top / h, (left + width) / w, (top + height) / h)
            boxes[image["file_name"]].append(box)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{file}: damaged ({one_line(error)}); mend or remove it") from error
    return dict(boxes)


def inside(boxes: Sequence[Box], shape: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: the pixels whose centres lie in a box."""
    y = (np.arange(shape[0]) + 0.5)[:, None] / shape[0]
    x = (np.arange(shape[1]) + 0.5)[None] / shape[1]
    masks = [(left <= x) & (x < right) & (top <= y) & (y < low) for left, top, right, low in boxes]
    return np.any(masks, axis=0)


def localisation(films: Iterable[tuple[np.ndarray, list[Box]]]) -> dict[str, Any]:
    """How often the hottest pixel lies in a box, and how much of the heat does.

    The pointing game (Zhang et al., IJCV 126:1084, 2018, without its tolerance) and the energy in
    the box (Wang et al., "Score-CAM", CVPRW 2020, sec. 4.3), beside those of maps without
    knowledge: uniform heat, or a blob in the middle (standard deviation: a quarter of a side).

    Args:
        films: (height, width) log-odds and boxes of each; energy is the heat's probability.
    """
    hits, energies, areas = defaultdict(list), defaultdict(list), []
    for heat, boxes in films:
        box = inside(boxes, heat.shape)
        y, x = (np.linspace(-1, 1, length) for length in heat.shape)
        blob = np.exp(-2 * (x[None] ** 2 + y[:, None] ** 2))
        for title, picture, energy in (("map", heat, expit(heat)), ("centred blob", blob, blob)):
            hits[title].append(bool(box.flat[picture.argmax()]))
            energies[title].append(energy[box].sum() / energy.sum())
        areas.append(box.mean())
    count = len(areas)
    weights = group_bootstrap(np.arange(count))

    def mean(values: Sequence[float]) -> Metric:
        return metric(float(np.mean(values)), weights @ np.array(values) / count, count)

    uniform = {"uniform": mean(areas)}  # a random pixel, or the same heat everywhere
    return {
        "pointing_game": {who: proportion(sum(h), count) for who, h in hits.items()} | uniform,
        "energy_in_box": {who: mean(e) for who, e in energies.items()} | uniform,
    }
