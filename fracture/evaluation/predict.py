"""Prediction for people: files in, a table and heat maps out."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from jsonargparse import Namespace
from PIL import Image
from tqdm import tqdm

from fracture.atomic import atomic_write
from fracture.cli import InputError, escape_controls
from fracture.config import Fit
from fracture.data.images import ImageFiles, files_below, read_grey
from fracture.features.extract import Compute, run_batches
from fracture.models.backbone import build_backbone
from fracture.models.classifier import Classifier


def find_images(given: Sequence[str]) -> list[Path]:
    """The files given, and from folders every file whose name ends like an image's.

    "-" stands for the paths on standard input, one on a line.

    Raises:
        InputError: a path does not exist, or the folders hold no image.
    """
    endings = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    endings.add(".dcm")
    paths: list[Path] = []
    if "-" in given:
        listed = os.fsdecode(sys.stdin.buffer.read()).split("\n")
        given = [*(name for name in given if name != "-"), *filter(None, listed)]
    for name in given:
        path = Path(name)
        if path.is_dir() and name:
            found = [file for file in sorted(files_below(path)) if not file.name.startswith(".")]
            others = [file for file in found if file.suffix.lower() not in endings]
            if others:
                print(f"not image files: {len(others)}, such as {escape_controls(others[0])}")
            paths += [file for file in found if file.suffix.lower() in endings]
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{name!r}: no such file or folder")
    if given and not paths:
        raise InputError(f"{', '.join(given)}: no images here")
    return paths


def predict_files(
    classifier: Classifier, paths: Sequence[Path], options: Namespace, compute: Compute
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
    column = classifier.column
    rows: list[dict[str, Any]] = [
        {"file": str(path), column: None, "decision": "", "note": ""} for path in paths
    ]
    cams: dict[int, np.ndarray] = {}
    heat = bool(options.heatmaps)
    for done, p, maps, bad in run_classifier(classifier, paths, heat, compute):
        for i, p_one, cam in zip(done, p, maps, strict=True):
            rows[i] |= {column: float(p_one), "decision": classifier.decide(p_one, options.at)}
            cams[i] = cam
        for i, reason in bad.items():
            rows[i]["note"] = f"unreadable: {reason}"
    if not cams:
        raise InputError(f"no file could be read: {paths[0]}: {rows[0]['note']}")
    print_predictions(rows, classifier, options.at)
    if out:
        write_table(out, rows)
    if options.heatmaps:
        save_heat_maps(Path(options.heatmaps), paths, cams, classifier.spec.fit)


def run_classifier(
    classifier: Classifier, paths: Sequence[Path], heat: bool, compute: Compute
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray, dict[int, str]]]:
    """Probabilities and heat maps of files, from one pass of the backbone.

    Yields:
        For each batch: positions of the readable files, their (n,) probabilities, their (n, h, w)
        heat maps (empty unless `heat`), and the reasons of the others.
    """
    spec = classifier.spec
    backbone = build_backbone(spec, compute.device)
    width = backbone.architecture.width

    def features_and_cam(images: torch.Tensor) -> torch.Tensor:
        maps = backbone.feature_maps(images)
        return torch.cat([maps.mean((2, 3)), classifier.cam(maps).flatten(1)], 1)

    images = ImageFiles(paths, spec.image_size, spec.fit)
    model = features_and_cam if heat else backbone
    for done, outputs, bad in run_batches(model, images, spec.image_size, compute):
        p = classifier.p_positive(torch.from_numpy(outputs[:, :width]).float())
        side = int((outputs.shape[1] - width) ** 0.5)
        yield done, p, outputs[:, width:].reshape(len(p), side, side), bad


def save_heat_maps(
    folder: Path, paths: Sequence[Path], cams: Mapping[int, np.ndarray], fit: Fit
) -> None:
    """Write a PNG of each film with its heat map, at the film's own size."""
    from fracture.evaluation.cam import in_frame, overlay  # matplotlib, for heat maps only

    folder.mkdir(parents=True, exist_ok=True)

    def save(number: int, position: int) -> None:
        path = paths[position]
        film = read_grey(path.read_bytes())
        heat = in_frame(cams[position], film.size, fit)
        with atomic_write(folder / f"{number:04}-{path.stem[:50]}.png") as new:
            overlay(film, heat).save(new, "PNG")

    with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow and NumPy release Python's lock
        saved = pool.map(save, range(1, len(cams) + 1), cams)
        for _ in tqdm(saved, "heat maps", len(cams), unit=" images", disable=None):
            pass


def print_predictions(
    rows: Sequence[dict[str, Any]], classifier: Classifier, operating_point: str
) -> None:
    threshold = classifier.thresholds[operating_point]
    print(f"{classifier.classes[0]} from {threshold:.4f} on (operating point {operating_point})\n")
    print(f"{classifier.column:13}{'decision':16}file")
    for row in rows:
        p = "" if row[classifier.column] is None else f"{row[classifier.column]:.4f}"
        file = escape_controls(row["file"])
        print(f"{p:13}{row['decision']:16}{file}  {row['note']}".rstrip())


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of equal keys as .json or .csv. surrogateescape keeps odd file names."""
    with atomic_write(path) as new:
        if path.suffix == ".json":
            new.write_text(json.dumps(rows, indent=2) + "\n")
            return
        with new.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
