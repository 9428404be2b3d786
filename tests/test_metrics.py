"""Figures against hand-worked cases and independent code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from fracture.evaluation.metrics import (
    BINS,
    calibrated,
    choose_thresholds,
    evaluate_decisions,
    evaluate_ranking,
    fit_temperature,
    proportion,
    ranking_figures,
    resample,
)

TRUTH = np.array([True, True, True, False, False, False, False, False, False, False])
P = np.array([0.9, 0.5, 0.2, 0.8, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0])
CASES = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def once(n: int) -> np.ndarray:
    return resample(np.arange(n), 20)


def film_like(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities as the test split of FracAtlas gives them: 18 %, ROC-AUC 0.87."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.18
    return truth, expit(rng.normal(-2.2 + 2 * truth, 1.2))


def test_a_case_worked_by_hand() -> None:
    figures = evaluate_decisions(TRUTH, P >= 0.5, once(10))
    assert figures["confusion_matrix"] == {"tn": 6, "fp": 1, "fn": 1, "tp": 2}
    for name, value in {
        "accuracy": 8 / 10,
        "balanced_accuracy": (2 / 3 + 6 / 7) / 2,
        "sensitivity": 2 / 3,
        "specificity": 6 / 7,
        "ppv": 2 / 3,
        "npv": 6 / 7,
        "f1": 2 / 3,
    }.items():
        assert figures[name]["value"] == pytest.approx(value), name
    ranking = evaluate_ranking(TRUTH, P, once(10))
    # Pairs won: 0.9 beats 7; 0.5 beats 6; 0.2 beats 3 and ties with one.
    assert ranking["roc_auc"]["value"] == pytest.approx((7 + 6 + 3.5) / 21)
    # Precision where the recall rises: 1/1 at 0.9, 2/3 at 0.5, 3/7 at 0.2.
    assert ranking["average_precision"]["value"] == pytest.approx((1 + 2 / 3 + 3 / 7) / 3)
    assert ranking["brier"]["value"] == pytest.approx(1.85 / 10)
    # Bins of a tenth: 0.0 and {0.1, 0.1}, {0.2, 0.2}, 0.3, 0.4, 0.5, 0.8, 0.9.
    assert ranking["ece"]["value"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.4 + 0.5 + 0.8 + 0.1) / 10)


def test_wilsons_interval_is_that_of_newcombes_table() -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3: 81/263, 15/148, 0/20."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        figure = proportion(successes, n)
        assert (figure["low"], figure["high"]) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_leaves_undefined_what_needs_the_other(label: bool) -> None:
    truth, p = np.full(3, label), np.array([0.1, 0.6, 0.9])
    assert evaluate_ranking(truth, p, once(3))["roc_auc"]["value"] is None
    figures = evaluate_decisions(truth, p >= 0.5, once(3))
    assert figures["specificity" if label else "sensitivity"]["value"] is None
    assert figures["specificity" if label else "sensitivity"]["n"] == 0
    assert figures["balanced_accuracy"]["value"] is None


def test_a_single_image_has_figures_too() -> None:
    ranking = evaluate_ranking(np.array([True]), np.array([0.7]), once(1))
    assert ranking["brier"]["value"] == pytest.approx(0.09)
    assert ranking["ece"]["value"] == pytest.approx(0.3)
    assert ranking["roc_auc"]["value"] is None


@given(CASES)
def test_figures_are_those_of_scikit_learn(cases: list[tuple[bool, int]]) -> None:
    truth, p = np.array([c[0] for c in cases]), np.array([c[1] / 20 for c in cases])
    figures = evaluate_decisions(truth, p >= 0.5, once(len(p)))
    ranking = evaluate_ranking(truth, p, once(len(p)))
    assert figures["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, p >= 0.5))
    assert ranking["brier"]["value"] == pytest.approx(np.mean((p - truth) ** 2))
    if truth.any() and not truth.all():
        for name, expected in {
            "sensitivity": sk.recall_score(truth, p >= 0.5),
            "specificity": sk.recall_score(truth, p >= 0.5, pos_label=False),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, p >= 0.5),
            "f1": sk.f1_score(truth, p >= 0.5),
        }.items():
            assert figures[name]["value"] == pytest.approx(expected), name
        assert ranking["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(truth, p))
        expected = sk.average_precision_score(truth, p)
        assert ranking["average_precision"]["value"] == pytest.approx(expected)
        for name, share in (("ppv", p >= 0.5), ("npv", p < 0.5)):
            if share.any():
                expected = sk.precision_score(truth == (name == "ppv"), share)
                assert figures[name]["value"] == pytest.approx(expected)


def test_the_calibration_error_is_that_of_scikit_learns_curve() -> None:
    truth, p = film_like(1000)
    observed, predicted = calibration_curve(truth, p, n_bins=BINS)
    counts = np.histogram(p, BINS, (0, 1))[0]
    expected = (np.abs(observed - predicted) * counts[counts > 0]).sum() / 1000
    assert evaluate_ranking(truth, p, once(1000))["ece"]["value"] == pytest.approx(expected)


@given(CASES, st.integers(0, 99))
def test_weights_count_an_image_as_often_as_they_say(
    cases: list[tuple[bool, int]], seed: int
) -> None:
    truth, p = np.array([c[0] for c in cases]), np.array([c[1] / 20 for c in cases])
    (weights,) = resample(np.arange(len(p)), 1, seed)
    weighted = ranking_figures(truth, p, weights[None])
    repeated = ranking_figures(truth.repeat(weights), p.repeat(weights), np.ones((1, len(p))))
    for name, (value,) in weighted.items():
        assert value == pytest.approx(repeated[name][0], nan_ok=True), name


def test_a_group_is_drawn_whole_and_as_often_as_any_other() -> None:
    groups = np.array(["a", "b", "a", "c", "c", "c"])
    weights = resample(groups, 4000)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3:5] == weights[:, 5:]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights.mean(0) == pytest.approx(1, abs=0.05)
    assert (resample(groups, 50) == resample(groups, 50)).all()


def delong(truth: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """DeLong's interval of the ROC-AUC, as published: Biometrics 44:837 (1988), eqs. 3 to 5."""
    wins = (p[truth][:, None] > p[~truth]) + 0.5 * (p[truth][:, None] == p[~truth])
    variance = wins.mean(1).var(ddof=1) / truth.sum() + wins.mean(0).var(ddof=1) / (~truth).sum()
    reach = norm.ppf(0.975) * np.sqrt(variance)
    return wins.mean() - reach, wins.mean() + reach


def test_the_bootstraps_interval_of_the_auc_is_delongs() -> None:
    for n in (400, 4000):
        truth, p = film_like(n)
        found = evaluate_ranking(truth, p, resample(np.arange(n)))["roc_auc"]
        assert (found["low"], found["high"]) == pytest.approx(delong(truth, p), abs=0.01)


def test_copies_widen_the_interval() -> None:
    truth, p = film_like(300)
    alone = evaluate_ranking(truth, p, resample(np.arange(300)))["roc_auc"]
    twice = truth.repeat(2), p.repeat(2)
    grouped = evaluate_ranking(*twice, resample(np.arange(300).repeat(2)))["roc_auc"]
    careless = evaluate_ranking(*twice, resample(np.arange(600)))["roc_auc"]
    width = [figure["high"] - figure["low"] for figure in (alone, grouped, careless)]
    assert width[1] == pytest.approx(width[0], rel=0.05)
    assert width[2] < 0.8 * width[1]


@pytest.mark.parametrize("true_temperature", [0.5, 1, 3])
def test_the_temperature_undoes_overconfidence(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(-1, 2, 20_000)
    truth = rng.random(20_000) < expit(honest)
    temperature = fit_temperature(truth, honest * true_temperature)
    assert temperature == pytest.approx(true_temperature, rel=0.05)
    p = calibrated(honest * true_temperature, temperature)
    assert evaluate_ranking(truth, p, once(20_000))["ece"]["value"] < 0.015


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=60))
def test_thresholds_do_what_their_names_say(cases: list[tuple[bool, int]]) -> None:
    truth, p = np.array([c[0] for c in cases]), np.array([c[1] / 20 for c in cases])
    if truth.all() or not truth.any():
        return
    thresholds = choose_thresholds(truth, p)
    assert thresholds["protocol"] == 0.5
    reached = (p[truth] >= thresholds["sensitivity90"]).mean()
    assert reached >= 0.9
    higher = p[truth][p[truth] > thresholds["sensitivity90"]]
    assert len(higher) < 0.9 * truth.sum()

    def youden(threshold: float) -> float:
        return (p[truth] >= threshold).mean() - (p[~truth] >= threshold).mean()

    assert youden(thresholds["youden"]) == pytest.approx(max(youden(level) for level in p))
