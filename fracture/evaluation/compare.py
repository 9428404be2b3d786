"""Tested runs side by side: is one better than the other, and what do all folds say together?"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fracture.cli import InputError, one_line
from fracture.evaluation.metrics import (
    decision_figures,
    evaluate_decisions,
    evaluate_ranking,
    figure,
    ranking_figures,
    resample,
)
from fracture.evaluation.report import TITLES, as_text, print_table
from fracture.models.classifier import p_column

Table = dict[str, tuple[bool, float, str]]  # by image: is it positive, its p, its group


def read_tested(run: Path) -> tuple[Table, dict[str, Any]]:
    """A run's test predictions by image, and its metrics.json.

    Raises:
        InputError: the run has not been tested, or what that left is damaged.
    """
    folder, again = run / "test", f"python infer.py --run {run.name}"
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        column = p_column(metrics["positive_class"])
        predictions = (folder / "predictions.csv").read_bytes()
        if hashlib.sha256(predictions).hexdigest() != metrics["predictions_sha256"]:
            raise ValueError("predictions.csv has changed")
        if not {*TITLES, "manifest_sha256"} <= metrics.keys():
            raise ValueError("metrics.json lacks figures")
        with (folder / "predictions.csv").open(encoding="utf-8", errors="surrogateescape") as file:
            table = {
                line["image"]: (
                    line["label"] == metrics["positive_class"],
                    float(line[column]),
                    line["group"],
                )
                for line in csv.DictReader(file)
                if line[column]
            }
        if not all(0 <= p <= 1 for _, p, _ in table.values()):
            raise ValueError("a probability is not in 0 to 1")
    except FileNotFoundError as error:
        raise InputError(f"{run} has not been tested; first: {again}") from error
    except (AttributeError, LookupError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{folder}: damaged ({one_line(error)}); test again: {again}") from error
    return table, metrics


def columns(tables: Sequence[Table], images: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Truth (N,) bool, probabilities (runs, N) and groups (N,) of images in all tables."""
    truth = np.array([tables[0][image][0] for image in images])
    p = np.array([[table[image][1] for image in images] for table in tables])
    return truth, p, np.array([tables[0][image][2] for image in images])


def compare_runs(runs: Sequence[Path]) -> None:
    """Print the differences of two runs on the same test images, with paired intervals.

    Both runs are resampled alike, so what they share cancels out; McNemar's exact test
    (Psychometrika 12:153, 1947) counts the images that only one of them gets right.

    Raises:
        InputError: they were tested on different splits.
    """
    (first, one), (second, two) = (read_tested(run) for run in runs)
    if (
        one["manifest_sha256"] != two["manifest_sha256"]
        or one["positive_class"] != two["positive_class"]
    ):
        raise InputError(f"{runs[0]} and {runs[1]} were not tested on the same split")
    images = sorted(first.keys() & second.keys())
    truth, p, groups = columns([first, second], images)
    everyone, weights = np.ones((1, len(images))), resample(groups)
    print(f"{len(images):,} images, {int(truth.sum()):,} {one['positive_class']}\n")
    print(f"{'':28}{runs[0].name[:15]:>16}{runs[1].name[:15]:>16}  difference")
    values, spread = (_all_figures(truth, p, w) for w in (everyone, weights))
    for name, title in TITLES.items():
        (a,), (b,) = values[0][name], values[1][name]
        difference = figure(a - b, spread[0][name] - spread[1][name], len(images))
        print(f"{title:28}{a:16.4f}{b:16.4f}  {as_text(difference)}")
    right = (p >= 0.5) == truth
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p_value = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    print(
        f"\nonly {runs[0].name} is right on {only[0]}, only {runs[1].name} on {only[1]}: "
        f"McNemar's exact p = {p_value:.3f}"
    )


def _all_figures(truth: np.ndarray, p: np.ndarray, w: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [ranking_figures(truth, row, w) | decision_figures(truth, row >= 0.5, w) for row in p]


def pool_runs(runs: Sequence[Path]) -> None:
    """Print the figures of each run, and of all together: every image predicted out of fold.

    Raises:
        InputError: an image was tested by two of the runs.
    """
    tested = [read_tested(run) for run in runs]
    pooled: Table = {}
    print(f"{'run':24}{'images':>8}  {'accuracy':24}{'ROC-AUC':24}")
    for run, (table, metrics) in zip(runs, tested, strict=True):
        if twice := pooled.keys() & table.keys():
            raise InputError(f"{run}: {min(twice)} was tested by another run; these are not folds")
        pooled |= table
        cells = (f"{as_text(metrics[name]):24}" for name in ("accuracy", "roc_auc"))
        print(f"{run.name[:23]:24}{len(table):8,}  {''.join(cells)}".rstrip())
    truth, p, groups = columns([pooled], sorted(pooled))
    weights = resample(groups)
    figures = evaluate_decisions(truth, p[0] >= 0.5, weights)
    figures |= evaluate_ranking(truth, p[0], weights)
    print(f"\nall {len(runs)} together, each image predicted by a model that never saw it")
    print_table(figures)
