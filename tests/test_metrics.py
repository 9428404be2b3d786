"""Figures against hand-worked cases and independent code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from fracture.metrics import evaluate, proportion

TRUTH = np.array([True, True, True, False, False, False, False, False, False, False])
P = np.array([0.9, 0.5, 0.2, 0.8, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0])


def test_a_case_worked_by_hand() -> None:
    figures = evaluate(TRUTH, P, 0.5)
    assert figures["confusion_matrix"] == {"tn": 6, "fp": 1, "fn": 1, "tp": 2}
    assert figures["accuracy"]["value"] == 0.8
    assert figures["sensitivity"]["value"] == 2 / 3
    assert figures["specificity"]["value"] == 6 / 7
    # Pairs won: 0.9 beats 7; 0.5 beats 6; 0.2 beats 3 and ties with one.
    assert figures["roc_auc"]["value"] == pytest.approx((7 + 6 + 3.5) / 21)


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
    figures = evaluate(np.full(3, label), np.array([0.1, 0.6, 0.9]), 0.5)
    assert figures["roc_auc"]["value"] is None
    assert figures["specificity" if label else "sensitivity"]["value"] is None
    assert figures["specificity" if label else "sensitivity"]["n"] == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=60))
def test_figures_are_those_of_scikit_learn(cases: list[tuple[bool, float]]) -> None:
    truth, p = np.array([c[0] for c in cases]), np.array([c[1] for c in cases])
    figures = evaluate(truth, p, 0.5)
    assert figures["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, p >= 0.5))
    if truth.any() and not truth.all():
        assert figures["sensitivity"]["value"] == pytest.approx(sk.recall_score(truth, p >= 0.5))
        assert figures["specificity"]["value"] == pytest.approx(
            sk.recall_score(truth, p >= 0.5, pos_label=False)
        )
        assert figures["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(truth, p))
    for name in ("accuracy", "sensitivity", "specificity"):
        figure = figures[name]
        if figure["n"]:
            assert 0 <= figure["low"] <= figure["value"] + 1e-12
            assert figure["value"] - 1e-12 <= figure["high"] <= 1
