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
    evaluate_decisions,
    evaluate_ranking,
    group_bootstrap,
    metric,
    threshold_free_metrics,
    threshold_metrics,
)
from fracture.evaluation.test_set import TITLES, as_text, print_table
from fracture.models.classifier import p_column
from fracture.runs.folder import find_run

Table = dict[str, tuple[bool, float, str]]  # by image: is it positive, its probability, its group


def read_tested(run: Path) -> tuple[Table, dict[str, Any]]:
    """A run's test predictions by image, and its metrics.json.

    Raises:
        InputError: the run has not been tested, or the results are damaged.
    """
    folder, again = run / "test", f"python infer.py --run {run.name}"
    try:
        results = json.loads((folder / "metrics.json").read_text())
        predictions = (folder / "predictions.csv").read_bytes()
        if hashlib.sha256(predictions).hexdigest() != results["predictions_sha256"]:
            raise ValueError("predictions.csv has changed")
        positive, column = results["positive_class"], p_column(results["positive_class"])
        with (folder / "predictions.csv").open(encoding="utf-8", errors="surrogateescape") as file:
            lines = [line for line in csv.DictReader(file) if line[column]]
    except FileNotFoundError as error:
        raise InputError(f"{run} has not been tested; first: {again}") from error
    except (LookupError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{folder}: damaged ({one_line(error)}); test again: {again}") from error
    table = {
        line["image"]: (line["label"] == positive, float(line[column]), line["group"])
        for line in lines
    }
    return table, results


def columns(tables: Sequence[Table], images: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Truth (N,) bool, probabilities (runs, N) and groups (N,) of images that all tables have."""
    truth = np.array([tables[0][image][0] for image in images])
    p = np.array([[table[image][1] for image in images] for table in tables])
    return truth, p, np.array([tables[0][image][2] for image in images])


def compare_runs(names: Sequence[str]) -> None:
    """Print the differences of two runs on the same test images, with paired intervals.

    Both runs share the bootstrap's draws, so that what they have in common cancels out. McNemar's
    exact test (Psychometrika 12:153, 1947) counts the images that only one of them gets right.

    Raises:
        InputError: they were tested on different splits.
    """
    runs = [find_run(name) for name in names]
    (first, one), (second, two) = (read_tested(run) for run in runs)
    if any(one[key] != two[key] for key in ("manifest_sha256", "positive_class")):
        raise InputError(f"{runs[0]} and {runs[1]} were not tested on the same split")
    images = sorted(first.keys() & second.keys())
    truth, p, groups = columns([first, second], images)
    print(f"{len(images):,} images, {int(truth.sum()):,} {one['positive_class']}\n")
    print(f"{'':28}{runs[0].name[:15]:>16}{runs[1].name[:15]:>16}  difference")
    values = _all_metrics(truth, p, np.ones((1, len(images))))
    draws = _all_metrics(truth, p, group_bootstrap(groups))
    for name, title in TITLES.items():
        (a,), (b,) = values[0][name], values[1][name]
        difference = metric(a - b, draws[0][name] - draws[1][name], len(images))
        print(f"{title:28}{a:16.4f}{b:16.4f}  {as_text(difference)}")
    correct = (p >= 0.5) == truth
    only = int((correct[0] & ~correct[1]).sum()), int((correct[1] & ~correct[0]).sum())
    p_value = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    print(
        f"\nonly {runs[0].name} is right on {only[0]}, only {runs[1].name} on {only[1]}: "
        f"McNemar's exact p = {p_value:.3f}"
    )


def _all_metrics(
    truth: np.ndarray, p: np.ndarray, weights: np.ndarray
) -> list[dict[str, np.ndarray]]:
    return [
        threshold_free_metrics(truth, row, weights) | threshold_metrics(truth, row >= 0.5, weights)
        for row in p
    ]


def pool_runs(names: Sequence[str]) -> None:
    """Print the metrics of each run, and of all together: every image predicted out of fold.

    Raises:
        InputError: two of the runs tested the same image.
    """
    pooled: Table = {}
    tested = [read_tested(find_run(name)) for name in names]
    print(f"{'run':24}{'images':>8}  {'accuracy':24}{'ROC-AUC':24}")
    for table, results in tested:
        if twice := pooled.keys() & table.keys():
            raise InputError(f"two runs tested {min(twice)}: they are not folds of one split")
        pooled |= table
        cells = (f"{as_text(results[name]):24}" for name in ("accuracy", "roc_auc"))
        print(f"{results['run'][:23]:24}{len(table):8,}  {''.join(cells)}".rstrip())
    truth, (p,), groups = columns([pooled], sorted(pooled))
    weights = group_bootstrap(groups)
    metrics = evaluate_decisions(truth, p >= 0.5, weights) | evaluate_ranking(truth, p, weights)
    print(f"\nall {len(names)} together, each image predicted by a model that never saw it")
    print_table(metrics)
