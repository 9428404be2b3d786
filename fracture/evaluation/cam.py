"""Heat maps over the images they explain, and how well they point at FracAtlas' own boxes."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.special import expit
from torch.utils.data import Subset

from fracture.cli import InputError, one_line
from fracture.config import Fit
from fracture.data.images import read_grey
from fracture.data.manifest import source_of
from fracture.data.split_folder import SplitFolder
from fracture.evaluation.metrics import group_bootstrap, metric, proportion
from fracture.features.extract import Compute, FeatureSet, run_batches
from fracture.models.backbone import build_backbone
from fracture.models.classifier import Classifier
from fracture.models.head import linear_layer

BOXES = "Annotations/COCO JSON/COCO_fracture_masks.json"

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of width and height
Films = dict[str, list[tuple[str, float, Image.Image]]]  # by heading: name, probability, heat map


def explain_test(
    classifier: Classifier, folder: SplitFolder, images: FeatureSet, compute: Compute
) -> tuple[Films, dict | None]:
    """Heat maps of the worst misses and false alarms, and how well those of fractures point.

    Args:
        classifier: from `load_classifier`.
        folder: the test folder.
        images: the readable images of it.
        compute: where the backbone runs.

    Returns:
        The films by heading, and the `localisation`, None if the data set has no boxes. Neither if
        the head is more than a linear layer.

    Raises:
        InputError: an image has changed since the split was made.
    """
    if linear_layer(classifier.head) is None:
        print("heat maps need a head of one linear layer: left out")
        return {}, None
    is_positive = (images.labels == classifier.positive_index).numpy()
    p, spec = classifier.p_positive(images.features), classifier.spec
    worst, boxes = worst_cases(is_positive, p), read_boxes(source_of(folder.split_dir))
    rows, names = images.rows, [Path(row.image).name for row in images.rows]
    boxed = [i for i in np.flatnonzero(is_positive).tolist() if names[i] in boxes]
    wanted = sorted({*boxed, *(i for some in worst.values() for i in some)})
    position = {row.path: i for i, row in enumerate(folder.rows)}
    films: Subset = Subset(folder, [position[rows[i].path] for i in wanted])
    backbone, heats = build_backbone(spec, compute.device), []

    def cam(batch: torch.Tensor) -> torch.Tensor:
        return classifier.cam(backbone.feature_maps(batch))

    for _, maps, bad in run_batches(cam, films, spec.image_size, compute, "heat maps"):
        for i, reason in bad.items():
            raise InputError(f"{folder.split_dir / rows[wanted[i]].path}: {reason}")
        heats += [*maps]
    heat_of = dict(zip(wanted, heats, strict=True))

    def film_and_heat(i: int) -> tuple[Image.Image, np.ndarray]:
        film = read_grey((folder.split_dir / rows[i].path).read_bytes())
        return film, in_frame(heat_of[i], film.size, spec.fit)

    pictures = {
        heading: [(names[i], p[i], overlay(*film_and_heat(i), longest=400)) for i in some]
        for heading, some in worst.items()
    }
    scored = ((film_and_heat(i)[1], boxes[names[i]]) for i in boxed)
    return pictures, localisation(scored) if boxed else None


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
    frame = size if fit == "squash" else (side, side)
    left, top = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    resized = Image.fromarray(heat.astype(np.float32)).resize(frame, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size[0], top + size[1])))


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


def read_boxes(data_root: Path) -> dict[str, list[Box]]:
    """The fracture boxes of each image, by file name; empty if the data set has no boxes.

    Raises:
        InputError: the file is there, but is not FracAtlas' own.
    """
    file = Path(str(data_root).removesuffix(".zip"), BOXES)  # a zip is unpacked beside itself
    boxes: dict[str, list[Box]] = defaultdict(list)
    if not file.is_file():
        return boxes
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
    return boxes


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
