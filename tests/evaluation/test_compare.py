"""Tested runs are compared image by image, and folds pooled."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom

import infer
from fracture.evaluation import metrics
from fracture.evaluation.test_set import TITLES, as_text, write_predictions
from tests.conftest import Capture, Patch, run_expecting_error
from tests.evaluation.conftest import JUDGE, film_like, image_set

TRUTH, LOG_ODDS = film_like(300, seed=5)
WEIGHTS = metrics.group_bootstrap(np.arange(300).astype(str))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tested("a", LOG_ODDS)


def save_tested(name: str, log_odds: np.ndarray, first: int = 0, last: int = 300) -> Path:
    (test := Path("runs", name, "test")).mkdir(parents=True)
    images = image_set(TRUTH[first:last], log_odds[first:last], first)
    digest = write_predictions(test / "predictions.csv", JUDGE, images)
    results: dict = {"run": name, "positive_class": "Fractured", "manifest_sha256": "one"}
    points = {"protocol": {"threshold": 0.5}, "youden": {"threshold": (first + 50) / 500}}
    points |= {"0.4": {"threshold": 0.4}} if first == 100 else {}
    results |= {"predictions_sha256": digest, "operating_points": points}
    results |= {"accuracy": None, "roc_auc": None}
    hit, energy = {"map": first == 0}, {"map": 0.3, "uniform": 0.1}
    film = {"group": name, "boxes": 1, "found": [0.8], "false": [], "hit": hit, "energy": energy}
    (test / "films.json").write_text(json.dumps([film]))
    (test / "metrics.json").write_text(json.dumps(results))
    return test


def test_a_run_does_not_differ_from_itself(capsys: Capture) -> None:
    infer.main(["--compare", "a", "a", "--out", "table.csv"])
    first, *_ = csv.DictReader(Path("table.csv").read_text().splitlines())
    assert first == {"metric": "accuracy", "value": "0.0", "low": "0.0", "high": "0.0", "n": "300"}
    assert Path("table.png").stat().st_size > 5000
    assert (out := capsys.readouterr().out).count("0.000 (0.000 to 0.000)") == len(TITLES)
    assert "only a is right on 0, only a on 0: McNemar's exact p = 1.000" in out


def test_a_paired_interval_is_the_narrower(capsys: Capture) -> None:
    both = np.stack([LOG_ODDS, LOG_ODDS + np.random.default_rng(6).normal(0.4, 0.8, 300)])
    save_tested("b", both[1])
    infer.main(["--compare", "a", "b"])
    (line,) = re.findall("ROC-AUC.*", out := capsys.readouterr().out)
    a, b, difference, low, high = map(float, re.findall(r"-?\d+\.\d+", line))
    alone = [metrics.evaluate_ranking(TRUTH, p, WEIGHTS)["roc_auc"] for p in expit(both / 2)]
    assert low < difference == pytest.approx(a - b, abs=1e-3)
    assert 0 < high - low < 0.7 * np.hypot(*(auc["high"] - auc["low"] for auc in alone))
    right, other = (both >= 0) == TRUTH
    only = (right > other).sum(), (other > right).sum()
    p = min(1, 2 * binom.cdf(min(only), sum(only), 0.5))
    assert f"only a is right on {only[0]}, only b on {only[1]}: McNemar's exact p = {p:.3f}" in out


CHANGES = [
    ("predictions.csv", ",0", ",1", r"runs/b: predictions.csv has changed; first: .*"),
    ("metrics.json", "one", "two", r"runs/a and runs/b were not tested on the same split"),
    ("metrics.json", "{", "", r"runs/b: .*; first: python infer.py --run b"),
]


@pytest.mark.parametrize(("file", "old", "new", "said"), CHANGES)
def test_damaged_and_other_tests_are_refused(file: str, old: str, new: str, said: str) -> None:
    path = save_tested("b", LOG_ODDS) / file
    path.write_text(path.read_text().replace(old, new))
    assert re.fullmatch(said, run_expecting_error(infer.main, "--compare", "a", "b"))
    path.unlink()
    assert "; first: python infer.py" in run_expecting_error(infer.main, "--compare", "a", "b")


def test_pooled_folds_are_one_test_set_and_no_image_counts_twice(capsys: Capture) -> None:
    folds = [save_tested(f"fold-{i}", LOG_ODDS, i, i + 100).parent.name for i in (0, 100, 200)]
    infer.main(["--pool", *folds, "--out", "table.json"])
    assert {row["metric"] for row in json.loads(Path("table.json").read_text())} == TITLES.keys()
    out = capsys.readouterr().out
    pooled = metrics.evaluate(TRUTH, expit(LOG_ODDS / 2), WEIGHTS)
    for name, title in TITLES.items():
        assert f"{title:28}{as_text(pooled[name]):26}{pooled[name]['n']:6} images" in out
    chosen = expit(LOG_ODDS / 2) >= np.repeat([0.1, 0.3, 0.5], 100)
    found = metrics.evaluate_decisions(TRUTH, chosen, WEIGHTS)
    point = [as_text(found[name]) for name in ("sensitivity", "specificity")]
    assert re.search(rf"\nyouden +{re.escape(point[0])} +{re.escape(point[1])}\n", out)
    assert "\n0.4 " not in out  # only one fold was tested at it
    assert re.search(r"\nmap +0.333 \(", out)
    assert re.search(r"\n 0.5 false marks a film: 1.000 .* of 3 boxes found\n", out)
    assert "they are not folds of one" in run_expecting_error(infer.main, "--pool", *folds, "a")
