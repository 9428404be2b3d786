"""The test set's metrics, composed: overall, at each operating point, by subgroup, baselines."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from fracture.data.manifest import read_manifest
from fracture.evaluation.metrics import (
    Metric,
    evaluate_decisions,
    evaluate_ranking,
    group_bootstrap,
)
from fracture.evaluation.subgroups import baselines, subgroup, subgroup_masks
from fracture.features.extract import FeatureSet
from fracture.models.classifier import Classifier

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def evaluate_test(classifier: Classifier, images: FeatureSet, split_dir: Path) -> dict[str, Any]:
    """All metrics of a test set. Thresholds and temperature come with the classifier.

    Args:
        classifier: from `load_classifier`.
        images: the test images.
        split_dir: of their split; its training images fit the baselines.

    Returns:
        Metrics at the threshold 0.5, flat; those of each operating point under `operating_points`;
        `calibration`, `baselines` and `subgroups`.
    """
    rows, positive = images.rows, classifier.classes[0]
    is_positive = np.array([row.label == positive for row in rows])
    log_odds = classifier.log_odds(images.features)
    p = expit(log_odds / classifier.temperature)
    weights = group_bootstrap(np.array([row.group for row in rows]))
    ranking = evaluate_ranking(is_positive, p, weights)
    points = {
        name: {"threshold": threshold, **evaluate_decisions(is_positive, p >= threshold, weights)}
        for name, threshold in classifier.thresholds.items()
    }
    uncalibrated = evaluate_ranking(is_positive, expit(log_odds), weights)
    protocol = {name: value for name, value in points["protocol"].items() if name != "threshold"}
    train_rows = [row for row in read_manifest(split_dir)[0] if row.split == "train"]
    sizes = np.array([(split_dir / row.path).stat().st_size for row in rows])
    return {
        **protocol,
        **ranking,
        "operating_points": points,
        "calibration": {
            "temperature": classifier.temperature,
            "before": {name: uncalibrated[name] for name in ("brier", "ece")},
            "after": {name: ranking[name] for name in ("brier", "ece")},
        },
        "baselines": baselines(rows, train_rows, is_positive, weights, positive),
        "subgroups": [
            subgroup(name, is_positive[mask], p[mask], weights[:, mask])
            for name, mask in subgroup_masks(rows, sizes).items()
        ],
    }


def write_predictions(
    path: Path, classifier: Classifier, images: FeatureSet, p_positive: np.ndarray
) -> str:
    """Write the table of a test set's predictions at p = 0.5, and return the file's sha256."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "group", "label", classifier.column, "predicted", "note"])
        for row, p in zip(images.rows, p_positive, strict=True):
            decision = classifier.decide(p, "protocol")
            writer.writerow([row.image, row.group, row.label, f"{p:.8f}", decision, ""])
        for row, reason in images.unreadable.items():
            writer.writerow([row.image, row.group, row.label, "", "", f"unreadable: {reason}"])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_text(metric: Metric | None) -> str:
    """A metric as "0.871 (0.834 to 0.901)"; a dash where it is undefined."""
    if not metric or metric["value"] is None:
        return "-"
    interval = "" if metric["low"] is None else f" ({metric['low']:.3f} to {metric['high']:.3f})"
    return f"{metric['value']:.3f}{interval}"


def print_table(metrics: dict[str, Any]) -> None:
    """Print every metric of `TITLES` with its interval and n."""
    for name, title in TITLES.items():
        print(f"{title:28}{as_text(metrics[name]):26}{metrics[name]['n']:>6,} images")


def print_results(results: dict[str, Any]) -> None:
    """Print the metrics, the baselines, the operating points and how well the heat maps point."""
    print_table(results)
    print("\nbaselines, without looking at an image")
    for name, metrics in results["baselines"].items():
        auc = f", ROC-AUC {as_text(metrics['roc_auc'])}" if "roc_auc" in metrics else ""
        print(f"{name:20}accuracy {as_text(metrics['accuracy'])}{auc}")
    print(f"\n{'operating point':17}{'from':>7}  {'sensitivity':24}{'specificity':24}")
    for name, point in results["operating_points"].items():
        cells = (f"{as_text(point[key]):24}" for key in ("sensitivity", "specificity"))
        print(f"{name:17}{point['threshold']:7.4f}  {''.join(cells)}".rstrip())
    if found := results["localisation"]:
        game, energy = found["pointing_game"], found["energy_in_box"]
        print(f"\nheat maps on {game['map']['n']} test images with fracture boxes")
        for who in ("map", "centred blob", "uniform"):
            print(f"{who:14}in a box {as_text(game[who]):24}  heat in boxes {as_text(energy[who])}")
