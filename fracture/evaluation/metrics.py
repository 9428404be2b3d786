"""Labels and probabilities to metrics with intervals, thresholds and temperature; pure functions.

A metric is a dict of `value`, `low` and `high` (its 95 % interval) and `n`, the number of images;
null where undefined. Proportions have Wilson's interval (JASA 22:209, 1927); all others the
percentiles of a bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13)
that draws groups of copies, not images: copies do not vary independently.
"""

from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_curve

from fracture.config import OPERATING_POINTS
from fracture.models.head import log_odds

Array = np.ndarray
Metric = dict[str, Any]

RESAMPLES = 2000
BINS = 10  # of the expected calibration error, of equal width


def proportion(successes: int, n: int) -> Metric:
    """A proportion with Wilson's 95 % score interval."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return {"value": successes / n, "low": interval.low, "high": interval.high, "n": n}


def group_bootstrap(groups: Array, count: int = RESAMPLES, seed: int = 0) -> Array:
    """How often each image counts: once, then in `count` draws of whole groups with replacement.

    Args:
        groups: (N,) names; images of one name are drawn together.

    Returns:
        (1 + count, N) int; the first row is 1.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), count)
    return np.vstack([np.ones_like(group_of), draws[:, group_of]])


def cumulative_counts(is_positive: Array, p: Array, weights: Array) -> tuple[Array, Array]:
    """Counts of true and false positives at every threshold, from the highest probability down.

    Args:
        is_positive: (N,) bool.
        p: (N,) float, of the positive class; equal ones share a threshold.
        weights: (B, N), how often each image counts.

    Returns:
        Two arrays of (B, levels + 1); the first column is 0.
    """
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(p[order])), len(order) - 1)
    of_class = (weights[:, order] * (is_positive[order] == label) for label in (True, False))
    tp, fp = (np.cumsum(counts, 1)[:, ends] for counts in of_class)
    return np.pad(tp, ((0, 0), (1, 0))), np.pad(fp, ((0, 0), (1, 0)))


def threshold_free_metrics(is_positive: Array, p: Array, weights: Array) -> dict[str, Array]:
    """Metrics that need no threshold, each (B,) for (B, N) weights; NaN where undefined.

    `roc_auc` (ties count half), `average_precision` (the step function's area, as scikit-learn
    has it), `brier` (mean squared error) and `ece`, the expected calibration error (Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017, eq. 3), of the positive class.
    """
    tp, fp = cumulative_counts(is_positive, p, weights)
    total = weights.sum(1)
    error = p - is_positive
    in_bin = np.minimum((p * BINS).astype(int), BINS - 1)[:, None] == np.arange(BINS)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0)
        auc = (np.diff(fp) * (tp[:, 1:] + tp[:, :-1])).sum(1) / (2 * tp[:, -1] * fp[:, -1])
        return {
            "roc_auc": auc,
            "average_precision": (np.diff(tp) * precision[:, 1:]).sum(1) / tp[:, -1],
            "brier": weights @ error**2 / total,
            "ece": np.abs(weights @ (error[:, None] * in_bin)).sum(1) / total,
        }


def proportions(tp: Any, fn: Any, fp: Any, tn: Any) -> dict[str, tuple[Any, Any]]:
    """Numerator and denominator of each metric that is a proportion."""
    return {
        "accuracy": (tp + tn, tp + tn + fp + fn),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
    }


def threshold_metrics(is_positive: Array, predicted: Array, weights: Array) -> dict[str, Array]:
    """Metrics of (N,) bool decisions, each (B,) for (B, N) weights; NaN where undefined."""
    tp, fn = weights @ (is_positive & predicted), weights @ (is_positive & ~predicted)
    fp, tn = weights @ (~is_positive & predicted), weights @ (~is_positive & ~predicted)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {name: k / n for name, (k, n) in proportions(tp, fn, fp, tn).items()}
        found["balanced_accuracy"] = (found["sensitivity"] + found["specificity"]) / 2
        return found | {"f1": 2 * tp / (2 * tp + fp + fn)}


def all_metrics(is_positive: Array, p: Array, weights: Array) -> dict[str, Array]:
    """`threshold_metrics` at p = 0.5 and `threshold_free_metrics` in one dict."""
    decisions = threshold_metrics(is_positive, p >= 0.5, weights)
    return decisions | threshold_free_metrics(is_positive, p, weights)


def metric(values: Array, n: int) -> Metric:
    """The first of (1 + count,) values, and the 2.5th and 97.5th percentile of the others."""
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = np.nanpercentile(values[1:], [2.5, 97.5]).tolist()
    return {"value": float(values[0]), "low": low, "high": high, "n": n}


def evaluate_ranking(is_positive: Array, p: Array, weights: Array) -> dict[str, Metric]:
    """`threshold_free_metrics` with intervals, from the weights of `group_bootstrap`."""
    found = threshold_free_metrics(is_positive, p, weights)
    return {name: metric(values, len(p)) for name, values in found.items()}


def evaluate_decisions(is_positive: Array, predicted: Array, weights: Array) -> dict[str, Any]:
    """Metrics of (N,) bool decisions, accuracy first, and their `confusion_matrix` as counts."""
    found = threshold_metrics(is_positive, predicted, weights)
    tn, fp, fn, tp = confusion_matrix(is_positive, predicted, labels=[False, True]).ravel().tolist()
    return {
        **{name: metric(values, len(predicted)) for name, values in found.items()},
        **{name: proportion(k, n) for name, (k, n) in proportions(tp, fn, fp, tn).items()},
        "confusion_matrix": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
    }


def evaluate(is_positive: Array, p: Array, weights: Array) -> dict[str, Any]:
    """All metrics with intervals, from the weights of `group_bootstrap`; decisions at p = 0.5."""
    decisions = evaluate_decisions(is_positive, p >= 0.5, weights)
    return decisions | evaluate_ranking(is_positive, p, weights)


def calibrate(logits: torch.Tensor, labels: torch.Tensor, positive: int) -> dict[str, Any]:
    """What turns logits into decisions, chosen on validation images.

    The `temperature`, the `thresholds` of the operating points and, for others, the `curve`:
    sensitivity and specificity at every threshold.

    Args:
        logits: (N, 2), of the validation images.
        labels: (N,) class indices, both classes present.
        positive: index of the positive class.
    """
    odds, is_positive = log_odds(logits, positive).numpy(), (labels == positive).numpy()
    temperature = fit_temperature(is_positive, odds)
    p = expit(odds / temperature)
    false_rate, true_rate, thresholds = roc_curve(is_positive, p, drop_intermediate=False)
    rows = [thresholds, true_rate, 1 - false_rate]
    curve = [row[1:].tolist() for row in rows]  # the first threshold is infinite
    chosen = choose_thresholds(is_positive, p)
    return {"temperature": temperature, "thresholds": chosen, "curve": curve}


def fit_join(is_positive: torch.Tensor, scores: torch.Tensor) -> list[float]:
    """The weights of two scores and the constant that make their sum the log-odds (logistic fit).

    Args:
        is_positive: (N,) bool, of the validation images, both classes present.
        scores: (N, 2) float.
    """
    fit = LogisticRegression().fit(scores.numpy(), is_positive.numpy())
    return [*fit.coef_[0].tolist(), float(fit.intercept_[0])]


def fit_temperature(is_positive: Array, log_odds: Array) -> float:
    """The temperature with the least cross-entropy (Guo et al., sec. 4.2).

    Args:
        is_positive: (N,) bool, of the validation images.
        log_odds: (N,) float; p is `expit(log_odds / temperature)`.
    """
    x = np.where(is_positive, log_odds, -log_odds)  # p of the truth is expit(x)
    found = minimize_scalar(lambda log_t: -log_expit(x / np.exp(log_t)).mean(), bounds=(-4, 4))
    return float(np.exp(found.x))


def choose_thresholds(is_positive: Array, p: Array) -> dict[str, float]:
    """Operating points from validation images: from its threshold on, an image is positive.

    `protocol` is 0.5, the more probable class; `sensitivity90` the highest threshold that finds
    90 % of the positives; `youden` the one with the largest sensitivity + specificity - 1 (Youden,
    Cancer 3:32, 1950).

    Args:
        is_positive: (N,) bool, both classes present.
        p: (N,) float, calibrated.
    """
    false_rate, true_rate, thresholds = roc_curve(is_positive, p, drop_intermediate=False)
    finds_90 = int(np.argmax(true_rate >= 0.9))
    best = 1 + int(np.argmax(true_rate[1:] - false_rate[1:]))  # the first threshold is infinite
    values = (0.5, float(thresholds[finds_90]), float(thresholds[best]))
    return dict(zip(OPERATING_POINTS, values, strict=True))
