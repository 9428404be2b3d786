"""Tested runs side by side: is one better than the other, and what do all folds say together?"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from fracture.cli import InputError, one_line
from fracture.evaluation import metrics
from fracture.evaluation.metrics import Array, Metric
from fracture.evaluation.plots import intervals
from fracture.evaluation.pointing import localisation
from fracture.evaluation.predict import check_table_name, write_table
from fracture.evaluation.test_set import (
    TITLES,
    as_text,
    print_localisation,
    print_points,
    print_table,
)
from fracture.models.classifier import p_column
from fracture.runs.find import find_run

Table = dict[str, tuple[bool, float, str]]  # by image: is it positive, its probability, its group


def read_tested(run: Path) -> tuple[Table, dict[str, Any]]:
    """A run's test predictions by image, and its metrics.json.

    Raises:
        InputError: the run has not been tested, or the results are damaged.
    """
    try:
        results = json.loads((run / "test/metrics.json").read_text())
        predictions = (run / "test/predictions.csv").read_bytes()
        if hashlib.sha256(predictions).hexdigest() != results["predictions_sha256"]:
            raise ValueError("predictions.csv has changed")
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = one_line(error)
        raise InputError(f"{run}: {reason}; first: python infer.py --run {run.name}") from error
    positive, column = results["positive_class"], p_column(results["positive_class"])
    text = io.StringIO(predictions.decode("utf-8", errors="surrogateescape"), newline="")
    return {
        line["image"]: (line["label"] == positive, float(line[column]), line["group"])
        for line in csv.DictReader(text)
        if line[column]  # else the image is unreadable
    }, results


def columns(table: Table, images: list[str]) -> list[Array]:
    """Truth (N,) bool, probabilities (N,) and groups (N,) of images of a table."""
    return [np.array(column) for column in zip(*(table[image] for image in images), strict=True)]


def compare_runs(names: list[str], out: str | None = None) -> None:
    """Print the differences of two runs on the same test images, with paired intervals.

    Both runs share the bootstrap's draws, so that what they have in common cancels out. McNemar's
    exact test (Psychometrika 12:153, 1947) counts the images that only one of them gets right.

    Args:
        names: of the two runs.
        out: a .csv or .json file for the table; its plot lies beside it.

    Raises:
        InputError: they were tested on different splits.
    """
    runs = [find_run(name) for name in names]
    (first, one), (second, two) = (read_tested(run) for run in runs)
    if any(one[key] != two[key] for key in ("manifest_sha256", "positive_class")):
        raise InputError(f"{runs[0]} and {runs[1]} were not tested on the same split")
    images = sorted(first.keys() & second.keys())
    truth, p_a, groups = columns(first, images)
    _, p_b, _ = columns(second, images)
    a_name, b_name = (run.name for run in runs)
    print(f"{len(images):,} images, {truth.sum():,} {one['positive_class']}\n")
    print(f"{'':28}{a_name[:15]:>16}{b_name[:15]:>16}  {a_name[:15]} minus {b_name[:15]}")
    weights = metrics.group_bootstrap(groups)
    a, b = (metrics.all_metrics(truth, p, weights) for p in (p_a, p_b))
    differences = {n: metrics.metric(a[n] - b[n], len(images)) for n in TITLES}
    for name, title in TITLES.items():
        difference = as_text(differences[name])
        print(f"{title:28}{a[name][0]:16.4f}{b[name][0]:16.4f}  {difference}")
    a_right, b_right = ((p >= 0.5) == truth for p in (p_a, p_b))
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    print(f"\nonly {a_name} is right on {only_a}, only {b_name} on {only_b}: ", end="")
    print(f"McNemar's exact p = {p_value:.3f}")
    if out:
        write_metrics(Path(out), differences, f"{a_name} minus {b_name}")


def write_metrics(path: Path, found: dict[str, Metric], title: str) -> None:
    """Write metrics with their intervals as .csv or .json, and their plot as .png beside it."""
    check_table_name(path)
    write_table(path, [{"metric": name, **metric} for name, metric in found.items()])
    plot = path.with_suffix(".png")
    intervals({TITLES[name]: metric for name, metric in found.items()}, title).savefig(plot)
    print(f"\ntable in {path}, plot in {plot}")


def pool_runs(names: list[str], out: str | None = None) -> None:
    """Print the metrics of each run, and of all together: every image predicted out of fold.

    Each fold decides at its own thresholds, which its own validation images chose.

    Args:
        names: of the runs.
        out: as for `compare_runs`.

    Raises:
        InputError: two of the runs tested the same image, or one was tested by an older version.
    """
    pooled: Table = {}
    decided: dict[str, list[Array]] = defaultdict(list)
    films: list[dict[str, Any]] = []
    print(f"{'run':24}{'images':>8}  {'accuracy':24}{'ROC-AUC':24}")
    for run in map(find_run, names):
        table, results = read_tested(run)
        if twice := pooled.keys() & table.keys():
            raise InputError(f"two runs tested {min(twice)}: they are not folds of one split")
        if not (file := run / "test/films.json").is_file():
            raise InputError(f"{file}: no such file; first: python infer.py --run {run.name}")
        films += json.loads(file.read_text())
        pooled |= table
        p = columns(table, [*table])[1]
        for name, point in results["operating_points"].items():
            decided[name].append(p >= point["threshold"])
        accuracy, auc = as_text(results["accuracy"]), as_text(results["roc_auc"])
        print(f"{run.name[:23]:24}{len(table):8,}  {accuracy:24}{auc}")
    truth, p, groups = columns(pooled, [*pooled])
    weights = metrics.group_bootstrap(groups)
    print(f"\nall {len(names)} together, each image predicted by a model that never saw it")
    overall = metrics.evaluate(truth, p, weights)
    print_table(overall)
    points = {
        name: metrics.evaluate_decisions(truth, np.concatenate(parts), weights)
        for name, parts in decided.items()
        if len(parts) == len(names)  # else not all folds were tested at it
    }
    print_points(points)
    print_localisation(localisation(films))
    if out:
        write_metrics(Path(out), {name: overall[name] for name in TITLES}, f"{len(names)} folds")
