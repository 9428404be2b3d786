"""Prediction for people: files in, a table and heat maps out."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from fracture.atomic import atomic_write
from fracture.cli import InputError, escape_controls
from fracture.data.dicom import is_dicom
from fracture.data.images import files_below
from fracture.evaluation.model import Model, Prediction
from fracture.models.classifier import Classifier


def find_images(given: list[str]) -> list[Path]:
    """The files given, and from folders every image: by its name or, of DICOM, by its content.

    "-" stands for the paths on standard input, one on a line.

    Raises:
        InputError: a path does not exist, or the folders hold no image.
    """
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
        known = Image.registered_extensions().items()
        endings = {".dcm"} | {end for end, name in known if name in Image.OPEN}
        found = {file for file in files_below(path) if not file.name.startswith(".")}
        images = {f for f in found if f.suffix.lower() in endings or is_dicom(f)}
        paths += sorted(images)
        if others := sorted(found - images):
            print(f"not image files: {len(others)}, such as {escape_controls(others[0])}")
    if given and not paths:
        raise InputError(f"{', '.join(given)}: no images here")
    return paths


def predict_files(model: Model, paths: list[Path], options: Namespace) -> None:
    """Print a line for each file, in order; an unreadable file gets its reason and stops nothing.

    Args:
        model: ready to judge.
        paths: the files.
        options: of infer.py: `at`, `out` and `heatmaps`.

    Raises:
        InputError: none of the files could be read, or `out` is not a file name for a table.
    """
    out = Path(options.out) if options.out else None
    if out:
        check_table_name(out)
    classifier, films = model.classifier, []
    rows: list[dict[str, Any]] = []
    with_heat = bool(options.heatmaps or classifier.has_marks)
    for path, film in zip(paths, model.stream(paths, with_heat), strict=True):
        decision = film.decisions.get(options.at, "")
        marked = classifier.has_marks and decision == classifier.classes[0]
        row = {
            "file": str(path),
            classifier.column: film.p,
            "decision": decision,
            "note": film.note,
        }
        marks = {"marks": film.marks() if marked else []} if classifier.has_marks else {}
        rows.append(row | marks)
        if film.p is not None:
            films.append((film, marked))
    if not films:
        raise InputError(f"no file could be read: {paths[0]}: {rows[0]['note']}")
    print_predictions(rows, classifier, options.at)
    if out:
        write_table(out, rows)
    if options.heatmaps:
        save_heat_maps(Path(options.heatmaps), films, model.compute.workers)


def print_predictions(rows: list[dict], classifier: Classifier, point: str) -> None:
    threshold = classifier.thresholds[point]
    print(f"{classifier.classes[0]} if p >= {threshold:.4f} (operating point {point})\n")
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
        raise InputError(f"--out {path}: must end in .csv or .json, in an existing folder")


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


def save_heat_maps(folder: Path, films: list[tuple[Prediction, bool]], workers: int) -> None:
    """Write a PNG of each film with its heat map, at the film's own size.

    Args:
        folder: made if it is not there.
        films: each with whether its marks are to be drawn.
        workers: films at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def save(i: int) -> None:
        film, marked = films[i]
        with atomic_write(folder / f"{i + 1:04}-{Path(str(film.source)).stem[:50]}.png") as new:
            film.picture(marks=marked).save(new, "PNG", compress_level=1)  # half the time

    # Threads are enough: Pillow and NumPy release Python's lock.
    bar: dict[str, Any] = {"desc": "heat maps", "unit": " images", "disable": None}
    thread_map(save, range(len(films)), max_workers=max(1, workers), **bar)
