"""Fracture boxes: FracAtlas' own file of them, and where they lie on an image's square."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fracture.cli import InputError, one_line
from fracture.config import FinetuneConfig, Fit
from fracture.data.manifest import Row, source_of

FILE = "Annotations/COCO JSON/COCO_fracture_masks.json"
UNKNOWN = 255  # in a mask: where the fracture lies is not known

Box = np.ndarray  # (2, 2): left and top, right and bottom, as shares of width and height


@dataclass(frozen=True)
class FilmBoxes:
    """A film's fracture boxes, and its width and height in pixels."""

    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)

    def on_square(self, fit: Fit) -> list[Box]:
        """The boxes as shares of the image's square."""
        share = film_share(self.size, fit)
        return [(box - 0.5) * share + 0.5 for box in self.boxes]


def read_boxes(data_root: Path) -> dict[str, FilmBoxes]:
    """The boxes of each film that has some, by file name; empty if the data set has no boxes.

    Raises:
        InputError: the file is there, but is not FracAtlas' own, or a box lies outside its film.
    """
    file = Path(str(data_root).removesuffix(".zip"), FILE)  # older splits name the .zip
    films: dict[str, FilmBoxes] = {}
    if not file.is_file():
        return films
    try:
        coco = json.loads(file.read_text())
        images = {image["id"]: image for image in coco["images"]}
        for annotation in coco["annotations"]:
            image, (left, top, width, height) = images[annotation["image_id"]], annotation["bbox"]
            w, h = image["width"], image["height"]  # of the original film, which may be larger
            box = np.array([(left / w, top / h), ((left + width) / w, (top + height) / h)])
            if not ((box > -0.01) & (box < 1.01) & (box[0] < box[1])).all():
                raise ValueError(f"{image['file_name']} has a box outside the film")
            films.setdefault(image["file_name"], FilmBoxes((w, h))).boxes.append(box)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{file}: damaged ({one_line(error)}); fix or remove it") from error
    return films


def fracture_masks(rows: list[Row], split_dir: Path, config: FinetuneConfig) -> torch.Tensor:
    """Where the fractures of training films lie, for `image_batches`.

    Args:
        rows: of the films.
        split_dir: of their split.
        config: image size, fit, positive class and the weight of the boxes.

    Returns:
        (N, m, m) uint8 with a cell for each 4 x 4 pixels: 1 where a box touches it, else 0;
        `UNKNOWN` all over a positive film without a box.

    Raises:
        InputError: no film has a box, but boxes have a weight.
    """
    root, cells = source_of(split_dir), config.image_size // 4
    known = read_boxes(root) if config.box_weight else {}
    masks = torch.zeros(len(rows), cells, cells, dtype=torch.uint8)
    for mask, row in zip(masks, rows, strict=True):
        if row.label == config.positive_class:
            film = known.get(Path(row.image).name)
            mask[:] = box_mask(film, config.fit, cells) if film else UNKNOWN
    if config.box_weight and not (masks == 1).any():
        raise InputError(f"{root}: no boxes of the training films in {FILE}; pass --box_weight 0")
    return masks


def film_share(size: tuple[int, int], fit: Fit) -> np.ndarray:
    """The (2,) shares of an image's square that the film takes up, from its middle outwards."""
    return np.array(size) / max(size) if fit == "letterbox" else np.ones(2)


def to_film(box: Box, size: tuple[int, int], fit: Fit) -> Box:
    """A box of the square as shares of a film of (width, height), cut off at its edges."""
    return ((box - 0.5) / film_share(size, fit) + 0.5).clip(0, 1)


def box_mask(film: FilmBoxes, fit: Fit, cells: int) -> torch.Tensor:
    """(cells, cells) uint8 of an image's square: 1 for each cell that a box touches, else 0."""
    mask = torch.zeros(cells, cells, dtype=torch.uint8)
    for box in film.on_square(fit):
        (left, top), (right, low) = box.clip(0, 1) * cells
        mask[int(top) : math.ceil(low), int(left) : math.ceil(right)] = 1
    return mask
