"""The report's plots: each function returns a matplotlib figure."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from fracture.evaluation import metrics
from fracture.evaluation.metrics import Array
from fracture.features.extract import FeatureSet
from fracture.runs.folder import read_history
from fracture.runs.trained import TrainedRun

# Okabe and Ito's palette (2008): distinct with any colour vision.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
BAND_RESAMPLES = 500
GRID = np.linspace(0, 1, 101)


def draw_plots(run: TrainedRun, images: FeatureSet, results: dict) -> dict[str, Figure]:
    """Every plot by its name.

    Args:
        run: the tested run.
        images: the test images.
        results: the content of metrics.json.
    """
    classifier = run.classifier
    log_odds = classifier.log_odds(images.features).numpy()
    raw, p = expit(log_odds), expit(log_odds / classifier.temperature)
    is_positive = (images.labels == classifier.positive_index).numpy()
    groups = np.array([row.group for row in images.rows])
    epochs = read_history(run.folder)
    return {
        "roc": roc(is_positive, p, groups, classifier.thresholds),
        "precision_recall": precision_recall(is_positive, p, groups),
        "reliability": reliability(is_positive, raw, p),
        "probabilities": histogram(is_positive, p, *classifier.classes),
        "subgroups": forest(results["subgroups"], results),
        **({"training": history(epochs)} if epochs else {}),
        **({"froc": froc(results["localisation"]["froc"])} if results["localisation"] else {}),
    }


def _axes(title: str, **labels: Any) -> tuple[Figure, Axes]:
    figure = Figure((4.2, 3.8), layout="constrained", dpi=150)
    axes = figure.add_subplot(title=title, **labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _plot_band(axes: Axes, curve: Callable, is_positive: Array, p: Array, groups: Array) -> None:
    """Plot a curve with its pointwise 95 % bootstrap band.

    `curve` takes the `cumulative_counts` of one draw, true positives first, and returns x and y.
    """
    weights = metrics.group_bootstrap(groups, BAND_RESAMPLES)
    counts = zip(*metrics.cumulative_counts(is_positive, p, weights), strict=True)
    curves = [curve(tp, fp) for tp, fp in counts if tp[-1] > 0 and fp[-1] > 0]
    band = [np.interp(GRID, x, y) for x, y in curves[1:]]
    axes.fill_between(GRID, *np.percentile(band, [2.5, 97.5], axis=0), color=BLUE, alpha=0.2, lw=0)
    axes.plot(*curves[0], color=BLUE)


def roc(is_positive: Array, p: Array, groups: Array, thresholds: dict[str, float]) -> Figure:
    """ROC curve with its pointwise 95 % band and the operating points."""
    figure, axes = _axes("ROC", xlabel="1 - specificity", ylabel="sensitivity")
    _plot_band(axes, lambda tp, fp: (fp / fp[-1], tp / tp[-1]), is_positive, p, groups)
    axes.plot([0, 1], [0, 1], ":", color="gray", lw=1)
    for (name, threshold), marker in zip(thresholds.items(), "os^D", strict=False):
        flagged = p >= threshold
        x, y = flagged[~is_positive].mean(), flagged[is_positive].mean()
        axes.plot(x, y, marker, color=ORANGE, label=f"{name} ({threshold:.2f})")
    axes.legend(title="threshold from validation", loc="lower right", fontsize=8)
    return figure


def intervals(found: dict[str, metrics.Metric], title: str) -> Figure:
    """Metrics, or differences of them, with their intervals, the first on top."""
    figure, axes = _axes(title)
    for y, metric in enumerate(reversed(found.values())):
        if metric["value"] is not None:
            axes.plot([metric["low"], metric["high"]], [y, y], color=BLUE)
            axes.plot(metric["value"], y, "o", color=BLUE)
    axes.set_yticks(range(len(found)), [*found][::-1])
    if any((metric["low"] or 0) < 0 for metric in found.values()):
        axes.axvline(0, ls=":", color="gray", lw=1)
    return figure


def precision_recall(is_positive: Array, p: Array, groups: Array) -> Figure:
    """Precision-recall curve with its pointwise 95 % band; the dotted line is the prevalence."""
    figure, axes = _axes("Precision and recall", xlabel="sensitivity (recall)", ylim=(0, 1.02))
    axes.set_ylabel("PPV (precision)")

    def curve(tp: Array, fp: Array) -> tuple[Array, Array]:
        tp, fp = tp[tp + fp > 0], fp[tp + fp > 0]
        return tp / tp[-1], tp / (tp + fp)

    _plot_band(axes, curve, is_positive, p, groups)
    axes.axhline(is_positive.mean(), ls=":", color="gray", lw=1)
    return figure


def reliability(is_positive: Array, before: Array, after: Array) -> Figure:
    """Observed against predicted share of positives by bin, with Wilson's intervals."""
    figure, axes = _axes("Reliability", xlabel="predicted probability", ylabel="observed share")
    axes.plot([0, 1], [0, 1], ":", color="gray", lw=1)
    for title, p, colour in (("before", before, ORANGE), ("calibrated", after, BLUE)):
        bins = np.minimum((p * metrics.BINS).astype(int), metrics.BINS - 1)
        points = []
        for members in (bins == b for b in np.unique(bins)):
            share = metrics.proportion(int(is_positive[members].sum()), int(members.sum()))
            points.append((p[members].mean(), share["value"], share["low"], share["high"]))
        x, y, low, high = np.transpose(points)
        reach = np.maximum([y - low, high - y], 0)
        axes.errorbar(x, y, reach, fmt="o-", ms=4, capsize=2, color=colour, label=title)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def froc(found: dict[str, Any]) -> Figure:
    """Share of fracture boxes found against false marks a film, with intervals where reported."""
    figure, axes = _axes("Marks (FROC)", xlabel="false marks a film", ylabel="boxes found")
    axes.step(*found["curve"], where="post", color=BLUE)
    for rate, metric in found["sensitivity"].items():
        axes.plot([float(rate)] * 2, [metric["low"], metric["high"]], color=ORANGE, lw=1.5)
        axes.plot(float(rate), metric["value"], "s", color=ORANGE, ms=5)
    axes.set_ylim(0, 1.02)
    return figure


def history(epochs: list[dict]) -> Figure:
    """Losses and validation accuracy by epoch; the best epoch is marked."""
    figure, axes = _axes("Training", xlabel="epoch", ylabel="loss")
    values = {name: [epoch[name] for epoch in epochs] for name in epochs[0]}
    axes.plot(values["epoch"], values["train_loss"], color=ORANGE, label="train loss")
    axes.plot(values["epoch"], values["val_loss"], color=BLUE, label="val loss")
    right = axes.twinx()
    right.plot(values["epoch"], values["val_accuracy"], "--", color=GREEN)
    right.set_ylabel("validation accuracy (dashed)", color=GREEN)
    axes.axvline(max(e["epoch"] for e in epochs if e["best"]), color="gray", lw=1, label="best")
    axes.legend(fontsize=8)
    return figure


def histogram(is_positive: Array, p: Array, positive: str, negative: str) -> Figure:
    """The calibrated probabilities of each class."""
    figure, axes = _axes("Probabilities", xlabel=f"p({positive})", ylabel="images")
    for truth, name, colour in ((False, negative, BLUE), (True, positive, ORANGE)):
        axes.hist([*p[is_positive == truth]], [*GRID[::5]], color=colour, alpha=0.6, label=name)
    axes.set_yscale("symlog", linthresh=10)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(fontsize=8)
    return figure


def forest(subgroups: list[dict], overall: dict) -> Figure:
    """Sensitivity and ROC-AUC of each subgroup with 95 % intervals; dotted: all images."""
    figure = Figure((8.6, 0.8 + 0.27 * len(subgroups)), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name, title in ((left, "sensitivity", "sensitivity"), (right, "roc_auc", "ROC-AUC")):
        for row, metric in enumerate(group.get(name) for group in subgroups):
            if metric and metric["value"] is not None:
                axes.plot([metric["low"], metric["high"]], [row, row], color=BLUE, lw=1.5)
                axes.plot(metric["value"], row, "s", color=BLUE, ms=5)
        axes.axvline(overall[name]["value"] or 0, ls=":", color="gray")
        axes.set(xlabel=title, xlim=(0, 1.02))
        axes.grid(alpha=0.25)
    titles = [f"{group['name']}  ({group['positives']} of {group['n']})" for group in subgroups]
    left.set(yticks=range(len(titles)), yticklabels=titles)
    left.invert_yaxis()
    return figure
