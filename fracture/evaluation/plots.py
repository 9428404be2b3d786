"""The report's plots: each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fracture.evaluation.metrics import BINS, cumulative_counts, group_bootstrap, proportion

# Okabe and Ito's palette (2008): distinct with any colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
BAND_RESAMPLES = 500
GRID = np.linspace(0, 1, 101)


def _axes(width: float = 4.2, height: float = 3.8, **labels: Any) -> tuple[Figure, Axes]:
    figure = Figure((width, height), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def roc(
    is_positive: np.ndarray, p: np.ndarray, groups: np.ndarray, thresholds: dict[str, float]
) -> Figure:
    """ROC curve with its pointwise 95 % band and the operating points."""
    figure, axes = _axes(xlabel="1 - specificity", ylabel="sensitivity", title="ROC")
    curves = []
    for weights in (np.ones((1, len(p))), group_bootstrap(groups, BAND_RESAMPLES)):
        tp, fp = cumulative_counts(is_positive, p, weights)
        usable = (tp[:, -1] > 0) & (fp[:, -1] > 0)
        rates = zip(fp[usable] / fp[usable, -1:], tp[usable] / tp[usable, -1:], strict=True)
        curves.append([(x, y) for x, y in rates])
    band = [np.interp(GRID, x, y) for x, y in curves[1]]
    axes.fill_between(GRID, *np.percentile(band, [2.5, 97.5], axis=0), color=BLUE, alpha=0.2, lw=0)
    axes.plot(*curves[0][0], color=BLUE)
    axes.plot([0, 1], [0, 1], ":", color="gray", lw=1)
    for (name, threshold), marker in zip(thresholds.items(), "os^", strict=True):
        flagged = p >= threshold
        x, y = flagged[~is_positive].mean(), flagged[is_positive].mean()
        axes.plot(x, y, marker, color=ORANGE, label=f"{name} ({threshold:.2f})")
    axes.legend(title="threshold from validation", loc="lower right", fontsize=8)
    return figure


def precision_recall(is_positive: np.ndarray, p: np.ndarray, groups: np.ndarray) -> Figure:
    """Precision-recall curve with its pointwise 95 % band; the dotted line is the prevalence."""
    figure, axes = _axes(xlabel="sensitivity (recall)", ylabel="PPV (precision)", ylim=(0, 1.02))
    axes.set_title("Precision and recall")
    lines = []
    for weights in (np.ones((1, len(p))), group_bootstrap(groups, BAND_RESAMPLES)):
        tp, fp = cumulative_counts(is_positive, p, weights)
        for hits, alarms in zip(tp[tp[:, -1] > 0], fp[tp[:, -1] > 0], strict=True):
            some = hits + alarms > 0
            lines.append((hits[some] / hits[-1], hits[some] / (hits + alarms)[some]))
    band = [np.interp(GRID, recall, precision) for recall, precision in lines[1:]]
    axes.fill_between(GRID, *np.percentile(band, [2.5, 97.5], axis=0), color=BLUE, alpha=0.2, lw=0)
    axes.plot(*lines[0], color=BLUE)
    axes.axhline(is_positive.mean(), ls=":", color="gray", lw=1)
    return figure


def reliability(is_positive: np.ndarray, before: np.ndarray, after: np.ndarray) -> Figure:
    """Observed against predicted share of positives by bin, with Wilson's intervals."""
    figure, axes = _axes(
        xlabel="predicted probability", ylabel="observed share", title="Reliability"
    )
    axes.plot([0, 1], [0, 1], ":", color="gray", lw=1)
    for title, p, colour in (("before", before, ORANGE), ("calibrated", after, BLUE)):
        bins = np.minimum((p * BINS).astype(int), BINS - 1)
        used = np.unique(bins)
        shares = [
            proportion(int(is_positive[bins == b].sum()), int((bins == b).sum())) for b in used
        ]
        middle = [p[bins == b].mean() for b in used]
        value = np.array([share["value"] for share in shares])
        low, high = (np.array([share[end] for share in shares]) for end in ("low", "high"))
        reach = np.maximum(np.array([value - low, high - value]), 0)
        axes.errorbar(middle, value, reach, fmt="o-", ms=4, capsize=2, color=colour, label=title)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def confusion(points: dict[str, Any], positive: str, negative: str) -> Figure:
    """The confusion matrix of each operating point."""
    figure = Figure((8.6, 2.9), layout="constrained", dpi=150)
    for axes, (name, point) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        counts = point["confusion_matrix"]
        table = np.array([[counts["tp"], counts["fn"]], [counts["fp"], counts["tn"]]])
        axes.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1.4)
        for (i, j), count in np.ndenumerate(table):
            axes.text(j, i, f"{count:,}", ha="center", va="center", fontsize=13)
        axes.set_xticks([0, 1], [positive, negative], fontsize=8)
        axes.set_yticks([0, 1], [positive, negative], fontsize=8, rotation=90, va="center")
        axes.set(xlabel="predicted", ylabel="true", title=f"{name} ({point['threshold']:.2f})")
    return figure


def history(epochs: Sequence[dict[str, Any]]) -> Figure:
    """Losses and validation accuracy by epoch; the best epoch is marked."""
    figure, axes = _axes(xlabel="epoch", ylabel="cross-entropy", title="Training")
    x = [epoch["epoch"] for epoch in epochs]
    for name, colour in (("train_loss", ORANGE), ("val_loss", BLUE)):
        axes.plot(x, [e[name] for e in epochs], color=colour, label=name.replace("_", " "))
    right = axes.twinx()
    right.plot(x, [e["val_accuracy"] for e in epochs], "--", color=GREEN)
    right.set_ylabel("validation accuracy (dashed)", color=GREEN)
    axes.axvline(max(e["epoch"] for e in epochs if e["best"]), color="gray", lw=1, label="best")
    axes.legend(fontsize=8)
    return figure


def histogram(is_positive: np.ndarray, p: np.ndarray, positive: str, negative: str) -> Figure:
    """The calibrated probabilities of each class."""
    figure, axes = _axes(xlabel=f"p({positive})", ylabel="images", title="Probabilities")
    for truth, name, colour in ((False, negative, BLUE), (True, positive, ORANGE)):
        axes.hist([*p[is_positive == truth]], [*GRID[::5]], color=colour, alpha=0.6, label=name)
    axes.set_yscale("symlog", linthresh=10)
    axes.legend(fontsize=8)
    return figure


def forest(subgroups: Sequence[dict[str, Any]], overall: Mapping[str, Any]) -> Figure:
    """Sensitivity and ROC-AUC of each subgroup with 95 % intervals; dotted: all images."""
    figure = Figure((8.6, 0.8 + 0.27 * len(subgroups)), layout="constrained", dpi=150)
    titles = [f"{s['name']}  ({s['positives']} of {s['n']})" for s in subgroups]
    for axes, name in zip(
        figure.subplots(1, 2, sharey=True), ("sensitivity", "roc_auc"), strict=True
    ):
        for row, group in enumerate(subgroups):
            found = group.get(name)
            if found and found["value"] is not None:
                axes.plot([found["low"], found["high"]], [row, row], color=BLUE, lw=1.5)
                axes.plot(found["value"], row, "s", color=BLUE, ms=5)
        axes.axvline(overall[name]["value"] or 0, ls=":", color="gray")
        axes.set(yticks=range(len(titles)), yticklabels=titles, xlim=(0, 1.02))
        axes.set_xlabel(name.replace("roc_auc", "ROC-AUC"))
        axes.grid(alpha=0.25)
    figure.axes[0].invert_yaxis()
    return figure
