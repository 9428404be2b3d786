"""A trained model for Python and for infer.py: films in, predictions out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fracture.config import BOXED, Fit, run_folder
from fracture.data.boxes import to_film
from fracture.data.dicom import caution
from fracture.data.images import ImageFiles, Source, read_grey
from fracture.evaluation.cam import MARK, draw_boxes, find_marks, judge, overlay, probabilities
from fracture.features.extract import Compute, pick_device
from fracture.models.classifier import Classifier, load_classifier
from fracture.runs.checkpoint import load_best

ODD = "caution: unlike the films that the model was trained on"


@dataclass(frozen=True)
class Prediction:
    """What a model says of a film.

    Attributes:
        source: the film, as it was given.
        p: calibrated probability of the positive class; None if the film cannot be read.
        decisions: the class at each operating point; empty if the film cannot be read.
        note: why it cannot be read, or a caution; "" otherwise.
        heat: (h, w) log-odds on the square that the network sees; None if not asked for.
        fit: how the film became that square.
    """

    source: Source = field(repr=False)
    p: float | None
    decisions: dict[str, str]
    note: str
    heat: np.ndarray | None = field(repr=False)
    fit: Fit

    def marks(self) -> list[dict[str, Any]]:
        """Up to three hot places, the hottest first: `p`, and `box` in the film's own pixels.

        A box is left, top, right, bottom. Where the model sees no fracture, each p is small.
        """
        if self.heat is None:
            return []
        size = read_grey(self.source).size
        places = [(mark.p, to_film(mark.box, size, self.fit) * size) for mark in self._places()]
        return [{"p": p, "box": np.rint(box).astype(int).ravel().tolist()} for p, box in places]

    def heat_map(self) -> np.ndarray:
        """(height, width) float32 probabilities, in the film's own size."""
        return probabilities(self._heat(), read_grey(self.source).size, self.fit)

    def picture(self, strength: float = 0.5, marks: bool = True) -> Image.Image:
        """The film in RGB under its heat map.

        Args:
            strength: of the heat map, 0 to 1.
            marks: draw their boxes.
        """
        film = read_grey(self.source)
        picture = overlay(film, self._heat(), self.fit, strength=strength)
        boxes = [to_film(mark.box, film.size, self.fit) for mark in self._places() if marks]
        draw_boxes(picture, boxes, MARK)
        return picture

    def _heat(self) -> np.ndarray:
        if self.heat is None:
            raise ValueError(self.note or "predicted without heat maps")
        return self.heat

    def _places(self) -> list:
        return find_marks(self._heat())


class Model:
    """A classifier on a device.

    Attributes:
        classifier: from `load_classifier`; its `thresholds` are the operating points.
    """

    def __init__(self, classifier: Classifier, compute: Compute) -> None:
        self.classifier, self.compute = classifier, compute

    def predict(self, films: Sequence[Source], heat: bool = True) -> list[Prediction]:
        """Judge films, in batches; one that cannot be read stops nothing.

        Args:
            films: paths, arrays of grey levels or colours, or Pillow images; DICOM files with
                pydicom.
            heat: compute heat maps and marks too.
        """
        return [*self.stream(films, heat)]

    def stream(self, films: Sequence[Source], heat: bool) -> Iterator[Prediction]:
        """The same, one by one."""
        points, fit = self.classifier.thresholds, self.classifier.spec.fit
        # The fracture map costs nothing, and with it comes the caution.
        with_heat = heat or self.classifier.has_marks
        judged = judge(self.classifier, partial(ImageFiles, films), self.compute, with_heat)
        for film, (p, found, odd, reason) in zip(films, judged, strict=True):
            if reason:
                yield Prediction(film, None, {}, f"unreadable: {reason}", None, fit)
                continue
            decisions = {point: self.classifier.decide(p, point) for point in points}
            note = "; ".join(filter(None, [caution(film), ODD * odd]))
            yield Prediction(film, p, decisions, note, found if heat else None, fit)


def load_model(source: str | Path | None = None, device: str = "auto", workers: int = 0) -> Model:
    """A trained model.

    Args:
        source: name or path of a run, or of a folder with a packed one; None: the model that comes
            along.
        device: auto, cpu or cuda.
        workers: processes that decode films; 0: this one.

    Raises:
        InputError: there is no such model, or it is damaged, or there is no such device.
    """
    folder = BOXED if source is None else run_folder(str(source))
    compute = Compute(pick_device(device), "float32", workers)
    return Model(load_classifier(load_best(folder), "", compute.precision), compute)
