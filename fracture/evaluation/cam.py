"""Heat maps over the images they explain, and how well they point at FracAtlas' own boxes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.special import expit
from tqdm import tqdm

from fracture.cli import InputError, one_line
from fracture.config import Fit
from fracture.data.images import load_image, read_grey
from fracture.evaluation.metrics import Figure, figure, proportion, resample
from fracture.models.backbone import build_backbone
from fracture.models.classifier import Classifier

BOXES = "Annotations/COCO JSON/COCO_fracture_masks.json"

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height


def heat_maps(classifier: Classifier, paths: Sequence[Path]) -> list[np.ndarray]:
    """The heat of each image, upright and in its own frame: (height, width) float32 logits."""
    recipe = classifier.recipe
    backbone = build_backbone(recipe.backbone, recipe.image_size, recipe.weights)
    heats = []
    for path in tqdm(paths, "heat maps", unit=" images", disable=None):
        content = path.read_bytes()
        image = torch.from_numpy(load_image(content, recipe.image_size, recipe.fit))
        heat = classifier.heat(backbone, image[None])[0]
        heats.append(in_frame(heat, read_grey(content).size, recipe.fit))
    return heats


def in_frame(heat: np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Carry a square heat map into a frame of (width, height), undoing `fit`."""
    side = max(size)
    square = Image.fromarray(heat.astype(np.float32))
    if fit == "squash":
        return np.asarray(square.resize(size, Image.Resampling.BICUBIC))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    whole = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + size[0], top + size[1])))


def overlay(path: Path, heat: np.ndarray, longest: int | None = None) -> Image.Image:
    """The film with its heat laid over it, RGB, at its own resolution or at most `longest` pixels.

    Inferno's lightness rises evenly, so the map reads alike with any colour vision.
    """
    film = np.asarray(read_grey(path.read_bytes()).convert("RGB"), dtype=float)
    p = expit(heat)  # on one scale for all films
    colour = matplotlib.colormaps["inferno"](p)[..., :3] * 255
    share = 0.65 * p[..., None]
    image = Image.fromarray(((1 - share) * film + share * colour).astype(np.uint8))
    if longest:
        image.thumbnail((longest, longest))
    return image


def read_boxes(data_root: Path) -> dict[str, list[Box]]:
    """The fracture boxes of each image, by file name; none if the data set has no such file.

    Raises:
        InputError: it is there, and not FracAtlas' own.
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


def inside(boxes: Sequence[Box], shape: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: which pixels' centres lie in a box."""
    y = (np.arange(shape[0]) + 0.5)[:, None] / shape[0]
    x = (np.arange(shape[1]) + 0.5)[None] / shape[1]
    parts = [(left <= x) & (x < right) & (top <= y) & (y < low) for left, top, right, low in boxes]
    return np.any(parts, axis=0)


def localisation(heats: Mapping[str, np.ndarray], boxes: Mapping[str, list[Box]]) -> dict[str, Any]:
    """How often the hottest pixel lies in a box, and how much of the heat does.

    The pointing game (Zhang et al., IJCV 126:1084, 2018, without its tolerance) and the energy in
    the box (Wang et al., "Score-CAM", CVPRW 2020, sec. 4.3), beside what a map without knowledge
    reaches: the same heat everywhere, or a blob in the middle (deviation: a quarter of a side).

    Args:
        heats: (height, width) logits of each image, by file name; energy is their probability.
        boxes: of each of these images.
    """
    results = defaultdict(list)
    for name, heat in heats.items():
        box = inside(boxes[name], (heat.shape[0], heat.shape[1]))
        y, x = (np.linspace(-1, 1, length) for length in heat.shape)
        blob = np.exp(-2 * (x[None] ** 2 + y[:, None] ** 2))
        for title, picture, energy in (("map", heat, expit(heat)), ("centred blob", blob, blob)):
            results[f"{title} hits"].append(box.flat[picture.argmax()])
            results[f"{title} energy"].append(energy[box].sum() / energy.sum())
        results["box area"].append(box.mean())
    count = len(heats)
    weights = resample(np.arange(count))

    def mean(values: Sequence[float]) -> Figure:
        return figure(float(np.mean(values)), weights @ np.array(values) / count, count)

    uniform = mean(results["box area"])  # a random pixel, or the same heat everywhere
    return {
        "pointing_game": {
            "map": proportion(int(sum(results["map hits"])), count),
            "centred blob": proportion(int(sum(results["centred blob hits"])), count),
            "uniform": uniform,
        },
        "energy_in_box": {
            "map": mean(results["map energy"]),
            "centred blob": mean(results["centred blob energy"]),
            "uniform": uniform,
        },
    }
