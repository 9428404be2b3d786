"""What the page of app.py shows: itself, and a model's answer to a film, as HTML."""

import base64
import csv
import io
from pathlib import Path
from threading import Lock
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from fracture.data.images import read_grey
from fracture.evaluation.cam import probabilities
from fracture.evaluation.model import Model, Prediction

MAX_BYTES = 50_000_000  # of a file
LONGEST = 1200  # pixels of a film on the page
PARTS = Path(__file__).with_name("page_parts")


class Judge:
    """A model that answers a page's films.

    It keeps nothing of a film, so that several users get their own answers.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.turn, classifier = model, Lock(), model.classifier
        self.parts = jinja2.Environment(
            loader=jinja2.FileSystemLoader(PARTS), autoescape=True, trim_blocks=True,
            lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        points = classifier.thresholds
        self.parts.globals |= {"classifier": classifier, "points": points, "max_bytes": MAX_BYTES}
        self.parts.globals["words"] = {name: name.replace("_", " ") for name in classifier.classes}
        self.parts.globals["percent"] = percent
        self.columns = [classifier.column, *(f"decision_{point}" for point in points)]

    def page(self) -> str:
        return self._render("page", header=_line(["file", *self.columns, "note"]))

    def script(self) -> str:
        return (PARTS / "page.js").read_text()

    def answer(self, name: str, size: int, data: str) -> dict[str, Any]:
        """What the page adds for a film.

        Args:
            name: of the file.
            size: of the file in bytes; the page does not send files that are too large.
            data: the content as a data: address.

        Returns:
            A `row` of the table, the `film` with all about it, a `line` of the CSV file, a
            `message` in short, and whether it was `judged`.
        """
        content = base64.b64decode(data.partition(",")[2])
        too_large = max(size, len(content)) > MAX_BYTES
        with self.turn:  # torch uses all cores for one film; 100 megapixels take a gigabyte
            if too_large or not content:
                why = f"more than {MAX_BYTES // 1_000_000} MB" if too_large else "an empty file"
                fit = self.model.classifier.spec.fit
                film = Prediction(content, None, {}, f"unreadable: {why}", None, fit)
            else:
                (film,) = self.model.predict([content])
            shown = {} if film.p is None else self._pictures(film)
        found = [f"{film.p:.4f}", *film.decisions.values()] if film.p is not None else []
        found += [""] * (len(self.columns) - len(found))
        known = {"name": name, "film": film, **shown}
        answer = {part: self._render(part, **known) for part in ("row", "film", "message")}
        line = _line([name, *found, film.note])
        return answer | {"line": line, "judged": film.p is not None}

    def _pictures(self, film: Prediction) -> dict[str, Any]:
        """The film and its heat map as two pictures of one shape; the page lays one on the other.

        The heat map is as transparent as it is cold, which gives the blend of `overlay`.
        """
        from matplotlib import colormaps

        grey = read_grey(film.source)
        size = grey.size
        grey.thumbnail((LONGEST, LONGEST))
        assert film.heat is not None
        p = probabilities(film.heat, grey.size, film.fit)
        layer = colormaps["inferno"](p, bytes=True)
        layer[..., 3] = np.rint(255 * p)
        heat = Image.fromarray(layer)
        heat.thumbnail((LONGEST // 4, LONGEST // 4))  # it is smooth
        marks = film.marks() if self.model.classifier.has_marks else []
        return {"size": size, "grey": _data(grey), "heat": _data(heat), "marks": marks}

    def _render(self, part: str, **known: Any) -> str:
        return self.parts.get_template(f"{part}.html").render(known)


def percent(p: float) -> str:
    """A probability is never 0 or 1."""
    edge = "< 0.1" if p < 0.0005 else "> 99.9" if p >= 0.9995 else f"{100 * p:.1f}"
    return f"{edge} %"


def _line(cells: list[str]) -> str:
    """Of a CSV file."""
    csv.writer(line := io.StringIO()).writerow(cells)
    return line.getvalue()


def _data(image: Image.Image) -> str:
    """A picture inside the page itself."""
    image.save(file := io.BytesIO(), "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
