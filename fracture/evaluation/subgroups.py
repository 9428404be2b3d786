"""The test set by subgroup, and baselines that look at no image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from fracture.data.fracatlas import BODY_PARTS, TRAITS, VIEWS, body_part
from fracture.data.manifest import Row
from fracture.evaluation.metrics import Metric, evaluate_decisions, evaluate_ranking, proportion

MIN_CASES = 10  # of each class, for a subgroup's ROC-AUC


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
    correct = int((is_positive == majority).sum())
    found: dict[str, Any] = {"majority": {"accuracy": proportion(correct, len(rows))}}
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
    """Named (N,) bool masks of the subgroups that dataset.csv and the file sizes define."""
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
    # FracAtlas has two kinds of film: 373 x 454 pixels, and many times that.
    masks |= {"file: up to 50 kB": sizes <= 50_000, "file: over 50 kB": sizes > 50_000}
    return {name: mask for name, mask in masks.items() if mask.any()}


def subgroup(
    name: str, is_positive: np.ndarray, p_positive: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """A subgroup's size and metrics at 0.5; no ROC-AUC with fewer than `MIN_CASES` of a class."""
    metrics = evaluate_decisions(is_positive, p_positive >= 0.5, weights)
    n, positives = len(is_positive), int(is_positive.sum())
    found: dict[str, Metric] = {key: metrics[key] for key in ("sensitivity", "specificity")}
    if min(positives, n - positives) >= MIN_CASES:
        found["roc_auc"] = evaluate_ranking(is_positive, p_positive, weights)["roc_auc"]
    return {"name": name, "n": n, "positives": positives, **found}
