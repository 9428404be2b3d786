"""The test split's figures, composed: overall, at each operating point, by subgroup, baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from fracture.data.fracatlas import BODY_PARTS, TRAITS, body_part
from fracture.data.manifest import Row
from fracture.evaluation.metrics import (
    calibrated,
    evaluate_decisions,
    evaluate_ranking,
    proportion,
    resample,
)
from fracture.models.classifier import Classifier

VIEWS = ("frontal", "lateral", "oblique")
LEAST_CASES = 10  # of each class, for a subgroup's ROC-AUC


def evaluate_test(
    classifier: Classifier,
    margin: np.ndarray,
    rows: Sequence[Row],
    train_rows: Sequence[Row],
    sizes: np.ndarray,
) -> dict[str, Any]:
    """All figures of a test split. The thresholds and the temperature come with the classifier.

    Args:
        classifier: from `restore`.
        margin: (N,) of the test images.
        rows: the N test images.
        train_rows: what the baselines are fitted on.
        sizes: (N,) bytes of each file.

    Returns:
        Figures at the threshold 0.5, flat; under `operating_points` those of each; `calibration`,
        `baselines` and `subgroups`.
    """
    is_positive = np.array([row.label == classifier.positive for row in rows])
    p = calibrated(margin, classifier.temperature)
    weights = resample(np.array([row.group for row in rows]))
    ranking = evaluate_ranking(is_positive, p, weights)
    points = {
        name: {"threshold": threshold, **evaluate_decisions(is_positive, p >= threshold, weights)}
        for name, threshold in classifier.thresholds.items()
    }
    before = evaluate_ranking(is_positive, calibrated(margin, 1), weights)
    protocol = {name: value for name, value in points["protocol"].items() if name != "threshold"}
    return {
        **protocol,
        **ranking,
        "operating_points": points,
        "calibration": {
            "temperature": classifier.temperature,
            "before": {name: before[name] for name in ("brier", "ece")},
            "after": {name: ranking[name] for name in ("brier", "ece")},
        },
        "baselines": baselines(rows, train_rows, is_positive, weights, classifier.positive),
        "subgroups": [
            subgroup(name, is_positive[mask], p[mask], weights[:, mask])
            for name, mask in subgroup_masks(rows, sizes).items()
        ],
    }


def baselines(
    rows: Sequence[Row],
    train_rows: Sequence[Row],
    is_positive: np.ndarray,
    weights: np.ndarray,
    positive: str,
) -> dict[str, Any]:
    """What needs no image: the commoner class, and a regression on body part and view alone."""
    train_truth = np.array([row.label == positive for row in train_rows])
    majority = train_truth.mean() > 0.5
    right = int((is_positive == majority).sum())
    found: dict[str, Any] = {"majority": {"accuracy": proportion(right, len(rows))}}
    flags = [
        np.array([[trait in row.traits.split() for trait in (*BODY_PARTS, *VIEWS)] for row in some])
        for some in (train_rows, rows)
    ]
    if flags[0].any():
        regression = LogisticRegression().fit(flags[0], train_truth)
        p = regression.predict_proba(flags[1])[:, 1]
        found["body part and view"] = {
            "accuracy": evaluate_decisions(is_positive, p >= 0.5, weights)["accuracy"],
            "roc_auc": evaluate_ranking(is_positive, p, weights)["roc_auc"],
        }
    return found


def subgroup_masks(rows: Sequence[Row], sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Named (N,) bool masks of the subgroups that dataset.csv and the files' sizes tell."""
    traits = [row.traits.split() for row in rows]
    masks = {}
    if any(traits):
        parts = np.array([body_part(row.traits) for row in rows])
        masks = {f"body part: {part}": parts == part for part in BODY_PARTS}
        views = np.array(["+".join(v for v in VIEWS if v in own) or "none" for own in traits])
        masks |= {f"view: {view}": views == view for view in sorted(set(views))}
        for trait in TRAITS[len(BODY_PARTS) : -len(VIEWS)]:
            has = np.array([trait in own for own in traits])
            masks |= {f"{trait}: yes": has, f"{trait}: no": ~has}
    # FracAtlas' films come in two kinds: 373 x 454 pixels, and many times that.
    masks |= {"file: up to 50 kB": sizes <= 50_000, "file: over 50 kB": sizes > 50_000}
    return {name: mask for name, mask in masks.items() if mask.any()}


def subgroup(
    name: str, is_positive: np.ndarray, p_positive: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """A subgroup's size and figures at 0.5; no ROC-AUC on fewer than `LEAST_CASES` of a class."""
    figures = evaluate_decisions(is_positive, p_positive >= 0.5, weights)
    n, positives = len(is_positive), int(is_positive.sum())
    found = {title: figures[title] for title in ("sensitivity", "specificity")}
    if min(positives, n - positives) >= LEAST_CASES:
        found["roc_auc"] = evaluate_ranking(is_positive, p_positive, weights)["roc_auc"]
    return {"name": name, "n": n, "positives": positives, **found}
