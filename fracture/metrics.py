"""Labels and probabilities to figures with intervals; pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, roc_auc_score


def proportion(successes: int, n: int) -> dict[str, Any]:
    """A proportion with Wilson's 95 % score interval (Wilson, JASA 22:209, 1927)."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return {"value": successes / n, "low": interval.low, "high": interval.high, "n": n}


def evaluate(is_positive: np.ndarray, p_positive: np.ndarray, threshold: float) -> dict[str, Any]:
    """Figures of a binary classifier.

    Args:
        is_positive: (N,) bool, the truth.
        p_positive: (N,) float, the predicted probability of the positive class.
        threshold: from this probability on, an image is predicted positive.

    Returns:
        `accuracy`, `sensitivity`, `specificity` and `roc_auc`, each with `value`, `low`, `high`
        (its 95 % interval) and `n`, null where undefined; and `confusion_matrix` as counts.
    """
    predicted = p_positive >= threshold
    matrix = confusion_matrix(is_positive, predicted, labels=[False, True])
    tn, fp, fn, tp = matrix.ravel().tolist()
    n = tn + fp + fn + tp
    auc = float(roc_auc_score(is_positive, p_positive)) if 0 < tp + fn < n else None
    return {
        "accuracy": proportion(tp + tn, n),
        "sensitivity": proportion(tp, tp + fn),
        "specificity": proportion(tn, tn + fp),
        "roc_auc": {"value": auc, "low": None, "high": None, "n": n},
        "confusion_matrix": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
    }
