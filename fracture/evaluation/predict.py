"""Prediction for people: files in, a table and heat maps out."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fracture.atomic import files_below, whole
from fracture.cli import InputError, shown
from fracture.config import Workers
from fracture.data.manifest import Row
from fracture.evaluation.cam import heat_maps, overlay
from fracture.features.extract import backbone_pass
from fracture.models.classifier import Classifier


def find_images(given: Sequence[str]) -> list[Path]:
    """The files given, and in folders every DICOM file or of a kind that Pillow reads.

    "-" stands for the paths on standard input, one on a line.

    Raises:
        InputError: a path does not exist, or there is no image in the folders.
    """
    kinds = {kind for kind, name in Image.registered_extensions().items() if name in Image.OPEN}
    kinds.add(".dcm")
    paths: list[Path] = []
    if "-" in given:
        listed = os.fsdecode(sys.stdin.buffer.read()).split("\n")
        given = [*(name for name in given if name != "-"), *filter(None, listed)]
    for name in given:
        path = Path(name)
        if path.is_dir() and name:
            inside = [file for file in sorted(files_below(path)) if not file.name.startswith(".")]
            others = [file for file in inside if file.suffix.lower() not in kinds]
            if others:
                print(f"not named like images: {len(others)} files, such as {shown(others[0])}")
            paths += [file for file in inside if file.suffix.lower() in kinds]
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{name!r}: no such file or folder")
    if given and not paths:
        raise InputError(f"{', '.join(given)}: no images in here")
    return paths


def predict(
    classifier: Classifier,
    paths: Sequence[Path],
    at: str,
    out_name: str | None,
    heatmaps: str | None,
    workers: Workers,
    device: torch.device,
) -> None:
    """Print a line for each file, in order; an unreadable one gets its reason and stops nothing.

    Args:
        classifier: from `restore`.
        paths: the files.
        at: operating point of the decisions.
        out_name: of a .csv or .json file for the table, or None.
        heatmaps: folder for the heat maps, or None.
        workers: processes that decode.
        device: where the backbone runs.

    Raises:
        InputError: not one of the files could be read, or `out_name` is something else.
    """
    out = Path(out_name) if out_name else None
    if out and out.suffix not in (".csv", ".json"):
        raise InputError(f"--out {out}: a name in .csv or .json is needed")
    if out and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    table: list[dict[str, Any]] = [
        {"file": str(path), classifier.column: None, "decision": "", "note": ""} for path in paths
    ]
    batches = backbone_pass(paths, None, classifier.recipe, workers, device)
    for done, vectors, bad in batches:
        for index, p in zip(done, classifier.p_positive(torch.from_numpy(vectors)), strict=True):
            table[index] |= {classifier.column: float(p), "decision": classifier.decide(p, at)}
        for index, reason in bad.items():
            table[index]["note"] = f"unreadable: {reason}"
    readable = [path for path, line in zip(paths, table, strict=True) if line["decision"]]
    if not readable:
        raise InputError(f"no file could be read: {paths[0]}: {table[0]['note']}")
    print(f"{classifier.positive} from {classifier.thresholds[at]:.4f} on (operating point {at})\n")
    print(f"{classifier.column:13}{'decision':16}file")
    for line in table:
        p = "" if line[classifier.column] is None else f"{line[classifier.column]:.4f}"
        print(f"{p:13}{line['decision']:16}{shown(line['file'])}  {line['note']}".rstrip())
    if out:
        with whole(out) as new:
            write_table(new, table)
    if heatmaps:
        folder = Path(heatmaps)
        folder.mkdir(parents=True, exist_ok=True)
        heats = heat_maps(classifier, readable)
        for number, (path, heat) in enumerate(zip(readable, heats, strict=True), 1):
            with whole(folder / f"{number:04}-{path.stem[:50]}.png") as new:
                overlay(path, heat).save(new)


def write_table(out: Path, table: Sequence[dict[str, Any]]) -> None:
    if out.suffix == ".json":
        out.write_text(json.dumps(table, indent=2) + "\n")
        return
    with out.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def write_predictions(
    path: Path,
    classifier: Classifier,
    rows: Sequence[Row],
    p_positive: np.ndarray,
    unreadable: dict[Row, str],
) -> None:
    """The table of a test split's predictions, at p = 0.5; of unreadable images it says why."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "group", "label", classifier.column, "predicted", "note"])
        for row, p in zip(rows, p_positive, strict=True):
            decision = classifier.decide(p, "protocol")
            writer.writerow([row.image, row.group, row.label, f"{p:.8f}", decision, ""])
        for row, reason in unreadable.items():
            writer.writerow([row.image, row.group, row.label, "", "", f"unreadable: {reason}"])
