"""Prediction for people: files in, a table and heat maps out."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image

from fracture.atomic import atomic_write
from fracture.cli import InputError, escape_controls
from fracture.config import Fit
from fracture.data.boxes import to_film
from fracture.data.images import ImageFiles, files_below, read_grey
from fracture.evaluation.pointing import find_marks, in_frame
from fracture.features.extract import Compute, run_batches
from fracture.models.classifier import Classifier


def find_images(given: list[str]) -> list[Path]:
    """The files given, and from folders every file whose name ends like an image's.

    "-" stands for the paths on standard input, one on a line.

    Raises:
        InputError: a path does not exist, or the folders hold no image.
    """
    endings = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    endings.add(".dcm")
    names = [name for name in given if name != "-"]
    if "-" in given:
        names += filter(None, os.fsdecode(sys.stdin.buffer.read()).split("\n"))
    if missing := [name for name in names if not (name and Path(name).exists())]:
        raise InputError(f"{missing[0]!r}: no such file or folder")  # "" would be this folder
    paths: list[Path] = []
    for path in map(Path, names):
        if not path.is_dir():
            paths.append(path)
            continue
        found = {file for file in files_below(path) if not file.name.startswith(".")}
        images = {file for file in found if file.suffix.lower() in endings}
        paths += sorted(images)
        if others := sorted(found - images):
            print(f"not image files: {len(others)}, such as {escape_controls(others[0])}")
    if given and not paths:
        raise InputError(f"{', '.join(given)}: no images here")
    return paths


def predict_files(
    classifier: Classifier, paths: list[Path], options: Namespace, compute: Compute
) -> None:
    """Print a line for each file, in order; an unreadable file gets its reason and stops nothing.

    Args:
        classifier: from `load_classifier`.
        paths: the files.
        options: of infer.py: `at`, `out` and `heatmaps`.
        compute: where the backbone runs.

    Raises:
        InputError: none of the files could be read, or `out` is not a file name for a table.
    """
    out = Path(options.out) if options.out else None
    if out and (out.suffix not in (".csv", ".json") or not out.parent.is_dir()):
        raise InputError(f"--out {out}: needs a name in .csv or .json, in a folder that exists")
    with_heat = bool(options.heatmaps or classifier.has_marks)
    rows, heats = judge_files(classifier, paths, options.at, compute, with_heat)
    if not heats:
        raise InputError(f"no file could be read: {paths[0]}: {rows[0]['note']}")
    fit = classifier.spec.fit
    if classifier.has_marks:
        for i, row in enumerate(rows):
            flagged = row["decision"] == classifier.classes[0]
            row["marks"] = marks_in_pixels(paths[i], heats[i], fit) if flagged else []
    print_predictions(rows, classifier, options.at)
    if out:
        write_table(out, rows)
    if options.heatmaps:
        films = [(paths[i], heat, rows[i].get("marks", [])) for i, heat in heats.items()]
        save_heat_maps(Path(options.heatmaps), films, fit, compute.workers)


def judge_files(
    classifier: Classifier, paths: list[Path], point: str, compute: Compute, with_heat: bool
) -> tuple[list[dict[str, Any]], dict[int, np.ndarray]]:
    """A row of the table for each file, and the heat of the readable ones by position.

    Args:
        classifier: from `load_classifier`.
        paths: the files.
        point: the operating point that decides.
        compute: where the network runs.
        with_heat: compute the (h, w) heat maps; else they are empty.
    """
    column, spec = classifier.column, classifier.spec
    network = spec.build(compute.device)

    def features_and_heat(images: torch.Tensor) -> torch.Tensor:
        features, heat = classifier.explain(network, images)
        return torch.cat([features, heat.flatten(1)], 1)

    rows = [{"file": str(path), column: None, "decision": "", "note": ""} for path in paths]
    heats: dict[int, np.ndarray] = {}
    model = features_and_heat if with_heat else network
    images = ImageFiles(paths, spec.image_size, spec.fit)
    for done, outputs, bad in run_batches(model, images, spec.image_size, compute):
        features, maps = np.hsplit(outputs, [spec.width])
        p = classifier.p_positive(torch.from_numpy(features).float()).tolist()
        for i, p_one, heat in zip(done, p, maps, strict=True):
            rows[i] |= {column: p_one, "decision": classifier.decide(p_one, point)}
            heats[i] = heat.reshape([int(heat.size**0.5)] * 2)
        for i, reason in bad.items():
            rows[i]["note"] = f"unreadable: {reason}"
    return rows, heats


def marks_in_pixels(path: Path, heat: np.ndarray, fit: Fit) -> list[dict[str, Any]]:
    """The marks of a film: `p`, and `box`: left, top, right, bottom in the film's own pixels."""
    size = read_grey(path.read_bytes()).size
    boxes = [(mark.p, to_film(mark.box, size, fit)) for mark in find_marks(heat)]
    return [
        {"p": p, "box": np.rint(np.tile(size, 2) * box).astype(int).tolist()} for p, box in boxes
    ]


def print_predictions(rows: list[dict], classifier: Classifier, point: str) -> None:
    threshold = classifier.thresholds[point]
    print(f"{classifier.classes[0]} from {threshold:.4f} on (operating point {point})\n")
    print(f"{classifier.column:13}{'decision':16}file")
    for file, p, decision, note, *marks in (row.values() for row in rows):
        shown = "" if p is None else f"{p:.4f}"
        boxes = [" ".join(map(str, mark["box"])) for mark in marks[0]] if marks else []
        note = f"marks {', '.join(boxes)}" if boxes else note
        print(f"{shown:13}{decision:16}{escape_controls(file)}  {note}".rstrip())


def write_table(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as .json or .csv. surrogateescape keeps odd file names."""
    text = io.StringIO()
    if path.suffix == ".json":
        text.write(json.dumps(rows, indent=2) + "\n")
    else:
        lines = [[*rows[0]], *(map(as_cell, row.values()) for row in rows)]
        csv.writer(text, lineterminator="\n").writerows(lines)
    with atomic_write(path) as new:
        new.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def as_cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value


def save_heat_maps(folder: Path, films: list[tuple], fit: Fit, workers: int) -> None:
    """Write a PNG of each film with its heat map and its marks, at the film's own size.

    Args:
        folder: made if it is not there.
        films: the path, the (h, w) heat map, and the marks of each.
        fit: how the backbone saw the films.
        workers: films at a time.
    """
    from tqdm.contrib.concurrent import thread_map

    from fracture.evaluation.cam import MARK, draw_boxes, overlay  # matplotlib, for these only

    folder.mkdir(parents=True, exist_ok=True)

    def save(number: int, film_and_heat: tuple[Path, np.ndarray, list]) -> None:
        path, heat, marks = film_and_heat
        film = read_grey(path.read_bytes())
        picture = overlay(film, in_frame(heat, film.size, fit))
        draw_boxes(picture, [np.array(mark["box"]) / np.tile(film.size, 2) for mark in marks], MARK)
        with atomic_write(folder / f"{number:04}-{path.stem[:50]}.png") as new:
            picture.save(new, "PNG", compress_level=1)  # half the time of writing

    # Pillow and NumPy release Python's lock.
    thread_map(
        save, range(1, len(films) + 1), films,
        max_workers=max(1, workers), desc="heat maps", unit=" images", disable=None,
    )  # fmt: skip
