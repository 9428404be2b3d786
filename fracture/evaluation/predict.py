"""Prediction for people: files in, a table and heat maps out."""

import csv
import io
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from fracture.atomic import atomic_write
from fracture.cli import InputError, escape_controls
from fracture.config import Fit
from fracture.data.boxes import to_film
from fracture.data.dicom import caution, is_dicom
from fracture.data.images import ImageFiles, files_below, read_grey
from fracture.evaluation.cam import MARK, draw_boxes, find_marks, judge, overlay
from fracture.features.extract import Compute
from fracture.models.classifier import Classifier


def find_images(given: list[str]) -> list[Path]:
    """The files given, and from folders every image: by its name or, of DICOM, by its content.

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
        images = {f for f in found if f.suffix.lower() in endings or is_dicom(f)}
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
    if out:
        check_table_name(out)
    spec, rows, films = classifier.spec, [], []
    with_heat = bool(options.heatmaps or classifier.has_marks)
    judged = judge(classifier, partial(ImageFiles, paths), compute, with_heat)
    for path, (p, heat, reason) in zip(paths, judged, strict=True):
        decision = "" if reason else classifier.decide(p, options.at)
        note = f"unreadable: {reason}" if reason else caution(path)
        row = {"file": str(path), classifier.column: p, "decision": decision, "note": note}
        if classifier.has_marks:
            flagged = decision == classifier.classes[0]
            row["marks"] = marks_in_pixels(path, heat, spec.fit) if flagged else []
        rows.append(row)
        if not reason:
            films.append((path, heat, row.get("marks", [])))
    if not films:
        raise InputError(f"no file could be read: {paths[0]}: {rows[0]['note']}")
    print_predictions(rows, classifier, options.at)
    if out:
        write_table(out, rows)
    if options.heatmaps:
        save_heat_maps(Path(options.heatmaps), films, spec.fit, compute.workers)


def marks_in_pixels(path: Path, heat: np.ndarray, fit: Fit) -> list[dict[str, Any]]:
    """The marks of a film: `p`, and `box`: left, top, right, bottom in the film's own pixels."""
    size = read_grey(path.read_bytes()).size
    marks = [(mark.p, to_film(mark.box, size, fit) * size) for mark in find_marks(heat)]
    return [{"p": p, "box": np.rint(box).astype(int).ravel().tolist()} for p, box in marks]


def print_predictions(rows: list[dict], classifier: Classifier, point: str) -> None:
    threshold = classifier.thresholds[point]
    print(f"{classifier.classes[0]} from {threshold:.4f} on (operating point {point})\n")
    first = max(13, len(classifier.column) + 2)
    wide = max(14, *map(len, classifier.classes)) + 2
    print(f"{classifier.column:{first}}{'decision':{wide}}file")
    for row in rows:
        p, boxes = row[classifier.column], [mark["box"] for mark in row.get("marks", [])]
        shown = "" if p is None else f"{p:.4f}"
        marks = ", ".join(" ".join(map(str, box)) for box in boxes)
        note = "  ".join(filter(None, [f"marks {marks}" if marks else "", row["note"]]))
        file = escape_controls(row["file"])
        print(f"{shown:{first}}{row['decision']:{wide}}{file}  {note}".rstrip())


def check_table_name(path: Path) -> None:
    if path.suffix not in (".csv", ".json") or not path.parent.is_dir():
        raise InputError(f"--out {path}: needs a name in .csv or .json, in a folder that exists")


def write_table(path: Path, rows: list[dict]) -> None:
    """Write rows of equal keys as .json or .csv. surrogateescape keeps odd file names."""
    text = io.StringIO()
    if path.suffix == ".json":
        text.write(json.dumps(rows, indent=2) + "\n")
    else:
        table = csv.DictWriter(text, rows[0], lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: json.dumps(v) if k == "marks" else v for k, v in row.items()})
    with atomic_write(path) as new:
        new.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def save_heat_maps(folder: Path, films: list[tuple], fit: Fit, workers: int) -> None:
    """Write a PNG of each film with its heat map and its marks, at the film's own size.

    Args:
        folder: made if it is not there.
        films: the path, the (h, w) heat map, and the marks of each.
        fit: how the backbone saw the films.
        workers: films at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def save(i: int) -> None:
        path, heat, marks = films[i]
        picture = overlay(read_grey(path.read_bytes()), heat, fit)
        shares = [np.reshape(mark["box"], (2, 2)) / picture.size for mark in marks]
        draw_boxes(picture, shares, MARK)
        with atomic_write(folder / f"{i + 1:04}-{path.stem[:50]}.png") as new:
            picture.save(new, "PNG", compress_level=1)  # half the time of writing

    # Threads are enough: Pillow and NumPy release Python's lock.
    bar: dict[str, Any] = {"desc": "heat maps", "unit": " images", "disable": None}
    thread_map(save, range(len(films)), max_workers=max(1, workers), **bar)
