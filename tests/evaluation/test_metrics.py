"""Metrics against scikit-learn, published examples and cases worked by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn import metrics as sk

from fracture.evaluation import metrics
from fracture.evaluation.metrics import all_metrics, choose_thresholds, group_bootstrap
from tests.evaluation.conftest import film_like

CASES = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 3)), max_size=60)


def values(truth: np.ndarray, p: np.ndarray, weights: np.ndarray) -> dict:
    return {name: value for name, (value,) in all_metrics(truth, p, weights[None]).items()}


def test_decisions_begin_at_one_half_and_bins_are_tenths() -> None:
    p = np.array([0.9, 0.5, 0.2, 0.8, 0.4, 0.3, 0.2, 0.1, 0.0])
    found = values(np.arange(9) < 3, p, np.array([1, 1, 1, 1, 1, 1, 1, 2, 1]))
    assert found["sensitivity"] == pytest.approx(2 / 3)
    # The bins hold 0.0, {0.1, 0.1}, {0.2, 0.2}, 0.3, 0.4, 0.5, 0.8, 0.9.
    assert found["ece"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.4 + 0.5 + 0.8 + 0.1) / 10)


@settings(max_examples=50)
@given(CASES)
def test_metrics_are_scikit_learns_and_a_weight_is_a_repetition(cases: list) -> None:
    assume({bool(positive) for positive, _, weight in cases if weight} == {True, False})
    truth, level, weights = map(np.array, zip(*cases, strict=True))
    found = values(truth, p := level / 20, weights)
    del found["ece"]
    truth, p = truth.repeat(weights), p.repeat(weights)
    yes, no = p >= 0.5, p < 0.5
    assert found == pytest.approx({
        "accuracy": sk.accuracy_score(truth, yes), "f1": sk.f1_score(truth, yes),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, yes),
        "sensitivity": sk.recall_score(truth, yes), "specificity": sk.recall_score(~truth, no),
        "ppv": sk.precision_score(truth, yes, zero_division=np.nan),
        "npv": sk.precision_score(~truth, no, zero_division=np.nan),
        "roc_auc": sk.roc_auc_score(truth, p), "brier": sk.brier_score_loss(truth, p),
        "average_precision": sk.average_precision_score(truth, p),
    }, nan_ok=True)  # fmt: skip


NEWCOMBE = [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611))]


@pytest.mark.parametrize(("k", "n", "interval"), NEWCOMBE)
def test_wilsons_interval_is_that_of_newcombes_table(k: int, n: int, interval: tuple) -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    assert [*metrics.proportion(k, n).values()][1:3] == pytest.approx(interval, abs=5e-5)


NEEDED = [(True, {"specificity"}), (False, {"sensitivity", "average_precision"})]


@pytest.mark.parametrize(("label", "undefined"), NEEDED)
def test_one_class_alone_leaves_undefined_what_needs_the_other(label: bool, undefined: set) -> None:
    weights = group_bootstrap(np.arange(3), 20)
    found = metrics.evaluate(np.full(3, label), np.array([0.1, 0.6, 0.9]), weights)
    without = {name for name, metric in found.items() if metric.get("low", 0) is None}
    assert without == undefined | {"balanced_accuracy", "roc_auc"}
    assert "NaN" not in json.dumps(found)


@pytest.mark.parametrize("copies", [1, 2])
def test_the_bootstrap_interval_of_the_auc_is_delongs(copies: int) -> None:
    """DeLong et al., Biometrics 44:837 (1988), eqs. 3 to 5; copies do not make it narrower."""
    truth, log_odds = film_like(1000, seed=1)
    wins = log_odds[truth, None] > log_odds[~truth]
    variance = sum(wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    expected = norm.interval(0.95, wins.mean(), np.sqrt(variance))
    weights = group_bootstrap(np.arange(1000).repeat(copies))
    truth, p = truth.repeat(copies), expit(log_odds).repeat(copies)
    auc = metrics.evaluate_ranking(truth, p, weights)["roc_auc"]
    assert (auc["low"], auc["high"]) == pytest.approx(expected, abs=0.01)


def test_groups_are_drawn_whole_and_equally_often() -> None:
    groups = np.array(["a", "b", "a", "c", "c", "c"])
    weights = group_bootstrap(groups, 4000)
    assert (weights[0] == 1).all()
    assert (weights[:, [0, 3, 3]] == weights[:, [2, 4, 5]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights.mean(0) == pytest.approx(1, abs=0.05)
    assert [(weights == group_bootstrap(groups, 4000, i)).all() for i in (0, 1)] == [True, False]


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
@pytest.mark.parametrize("positive", [0, 1])
def test_calibration_undoes_overconfidence_in_order(temperature: float, positive: int) -> None:
    rng, logits = np.random.default_rng(1), torch.zeros(20_000, 2, dtype=torch.float64)
    honest = rng.normal(-1, 2, 20_000)
    truth, log_odds = rng.random(20_000) < expit(honest), honest * temperature
    logits[:, positive] = torch.from_numpy(log_odds)
    found = metrics.calibrate(logits, torch.from_numpy(truth == positive).int(), positive)
    assert found["temperature"] == pytest.approx(temperature, rel=0.05)
    p = expit(log_odds / found["temperature"])
    assert found["thresholds"] == choose_thresholds(truth, p)
    assert (found["curve"][0] == np.sort(p)[::-1]).all()  # every threshold, for any target
    assert (np.argsort(p) == np.argsort(log_odds)).all()


@given(CASES)
def test_thresholds_do_what_their_names_say(cases: list) -> None:
    truth, p = np.array([c[0] for c in cases], bool), np.array([c[1] / 20 for c in cases])
    assume(truth.any() and not truth.all())
    found = choose_thresholds(truth, p)
    assert (p[truth] > found["sensitivity90"]).mean() < 0.9
    assert (p[truth] >= found["sensitivity90"]).mean() >= 0.9
    youden = {t: (p[truth] >= t).mean() - (p[~truth] >= t).mean() for t in p.tolist()}
    assert youden[found["youden"]] == pytest.approx(max(youden.values()))


TIES = [([0.9, 0.7, 0.6, 0.2], 0.6, 0.9), ([0.6, 0.6, 0.4, 0.2], 0.4, 0.4), ([0.3] * 4, 0.3, 0.3)]


@pytest.mark.parametrize(("p", "sensitivity90", "youden"), TIES)
def test_the_highest_of_equals(p: list[float], sensitivity90: float, youden: float) -> None:
    found = choose_thresholds(np.array([True, False, True, False]), np.array(p))
    assert found == {"protocol": 0.5, "sensitivity90": sensitivity90, "youden": youden}
