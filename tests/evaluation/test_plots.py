"""Every plot says what it shows, for usual results and for the odd ones."""

import numpy as np
import pytest
from scipy.special import expit

from fracture.evaluation import metrics, plots
from tests.evaluation.conftest import CLASSES, THRESHOLDS, film_like

TRUTH, LOG_ODDS = film_like(300, seed=4)
EPOCH = {"epoch": 1, "train_loss": 0.7, "val_loss": 0.6, "val_accuracy": 0.8, "best": True}
ODD = {"usual": expit(LOG_ODDS), "perfect": 0.1 + 0.8 * TRUTH, "constant": np.full(300, 0.3)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("p", ODD.values(), ids=ODD)
@pytest.mark.parametrize("count", [2, 300])
def test_every_plot_draws_and_says_what_it_shows(p: np.ndarray, count: int) -> None:
    truth, p, groups = np.sort(TRUTH)[-count:], p[np.argsort(TRUTH)][-count:], np.arange(count)
    truth[0] = False
    found = metrics.evaluate(truth, p, metrics.group_bootstrap(groups, 20))
    group = {"name": "hand", "n": 9, "positives": 3, "sensitivity": found["sensitivity"]}
    figures = [plots.roc(truth, p, groups, THRESHOLDS), plots.precision_recall(truth, p, groups)]
    figures += [plots.reliability(truth, p, p), plots.histogram(truth, p, *CLASSES)]
    figures += [plots.history([EPOCH])]
    forest = plots.forest([group, group | {"roc_auc": found["roc_auc"]}], found)
    assert [axes.get_xlabel() for axes in forest.axes] == ["sensitivity", "ROC-AUC"]
    forest.draw_without_rendering()
    for figure in figures:
        axes = figure.axes[0]
        assert all([axes.get_title(), axes.get_xlabel(), axes.get_ylabel()])
        figure.draw_without_rendering()
