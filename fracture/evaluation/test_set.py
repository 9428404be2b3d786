"""The test set's metrics, composed: overall, at each operating point, by subgroup, baselines."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from fracture.data.fracatlas import BODY_PARTS, TRAITS, VIEWS, body_part
from fracture.data.manifest import Row, read_manifest
from fracture.evaluation import metrics
from fracture.evaluation.metrics import Array, Metric
from fracture.evaluation.predict import write_table
from fracture.features.extract import FeatureSet
from fracture.models.classifier import Classifier

TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error",
}
MIN_CASES = 10  # of each class, for a subgroup's ROC-AUC


def evaluate_test(classifier: Classifier, images: FeatureSet, split_dir: Path) -> dict[str, Any]:
    """All metrics of a test set. Thresholds and temperature come with the classifier.

    Args:
        classifier: from `load_classifier`.
        images: the test images.
        split_dir: of their split; its training images fit the baselines.

    Returns:
        Metrics at the threshold 0.5, flat; those of each operating point under `operating_points`;
        `calibration`, `baselines` and `subgroups`.
    """
    rows, is_positive = images.rows, (images.labels == classifier.positive_index).numpy()
    log_odds = classifier.log_odds(images.features).numpy()
    p = expit(log_odds / classifier.temperature)
    weights = metrics.group_bootstrap(np.array([row.group for row in rows]))
    overall = metrics.evaluate(is_positive, p, weights)
    before = metrics.evaluate_ranking(is_positive, expit(log_odds), weights)
    calibration = {"before": _pick(before, "brier", "ece"), "after": _pick(overall, "brier", "ece")}
    points = {
        name: {"threshold": t} | metrics.evaluate_decisions(is_positive, p >= t, weights)
        for name, t in classifier.thresholds.items()
    }
    return overall | {
        "operating_points": points,
        "calibration": {"temperature": classifier.temperature, **calibration},
        "baselines": baselines(rows, split_dir, is_positive, weights, classifier.classes[0]),
        "subgroups": [
            subgroup(name, is_positive[mask], p[mask], weights[:, mask])
            for name, mask in subgroup_masks(rows, split_dir).items()
        ],
    }


def _pick(found: dict[str, Any], *names: str) -> dict[str, Metric]:
    return {name: found[name] for name in names}


def baselines(
    rows: list[Row], split_dir: Path, is_positive: Array, weights: Array, positive: str
) -> dict[str, dict[str, Metric]]:
    """What needs no image: the commoner class, and a regression on body part and view alone."""
    train = [row for row in read_manifest(split_dir)[0] if row.split == "train"]
    train_positive = np.array([row.label == positive for row in train])
    correct = is_positive == (train_positive.mean() > 0.5)
    found = {"majority": {"accuracy": metrics.proportion(int(correct.sum()), len(rows))}}
    train_flags, flags = (
        np.array([[trait in row.traits.split() for trait in (*BODY_PARTS, *VIEWS)] for row in some])
        for some in (train, rows)
    )
    if train_flags.any():
        p = LogisticRegression().fit(train_flags, train_positive).predict_proba(flags)[:, 1]
        evaluated = metrics.evaluate(is_positive, p, weights)
        found["body part and view"] = _pick(evaluated, "accuracy", "roc_auc")
    return found


def subgroup_masks(rows: list[Row], split_dir: Path) -> dict[str, Array]:
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
    small = np.array([(split_dir / row.path).stat().st_size <= 50_000 for row in rows])
    masks |= {"file: up to 50 kB": small, "file: over 50 kB": ~small}
    return {name: mask for name, mask in masks.items() if mask.any()}


def subgroup(name: str, is_positive: Array, p: Array, weights: Array) -> dict[str, Any]:
    """A subgroup's size and metrics at 0.5; no ROC-AUC with fewer than `MIN_CASES` of a class."""
    n, positives = len(is_positive), int(is_positive.sum())
    enough = ("roc_auc",) if min(positives, n - positives) >= MIN_CASES else ()
    found = _pick(metrics.evaluate(is_positive, p, weights), "sensitivity", "specificity", *enough)
    return {"name": name, "n": n, "positives": positives, **found}


def write_predictions(path: Path, classifier: Classifier, images: FeatureSet) -> str:
    """Write the table of a test set's predictions at p = 0.5, and return the file's sha256."""
    header = ("image", "group", "label", classifier.column, "predicted", "note")
    lines = [
        (row.image, row.group, row.label, f"{p:.8f}", classifier.decide(p, "protocol"), "")
        for row, p in zip(images.rows, classifier.p_positive(images.features), strict=True)
    ]
    for row, reason in images.unreadable.items():
        lines.append((row.image, row.group, row.label, "", "", f"unreadable: {reason}"))
    write_table(path, [dict(zip(header, line, strict=True)) for line in lines])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_text(metric: Metric | None) -> str:
    """A metric as "0.871 (0.834 to 0.901)"; a dash where it is undefined."""
    if not metric or metric["value"] is None:
        return "-"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def print_table(found: dict[str, Any]) -> None:
    """Print every metric of `TITLES` with its interval and n."""
    for name, title in TITLES.items():
        print(f"{title:28}{as_text(found[name]):26}{found[name]['n']:>6,} images")


def print_results(results: dict[str, Any]) -> None:
    """Print the metrics, the baselines, the operating points and how well the heat maps point."""
    print_table(results)
    print("\nbaselines, without looking at an image")
    for name, found in results["baselines"].items():
        cells = [f"{TITLES[key]} {as_text(metric)}" for key, metric in found.items()]
        print(f"{name:20}{', '.join(cells)}")
    print_points(results["operating_points"])
    print_localisation(results["localisation"])
    if "caution" in results["provenance"]:
        print(f"\ncaution: {results['provenance']['caution']}")


def print_points(points: dict[str, Any]) -> None:
    """Print the operating points; where folds are pooled, each has its own threshold."""
    print(f"\n{'operating point':17}{'from':>7}  {'sensitivity':24}{'specificity':24}")
    for name, point in points.items():
        threshold = f"{point['threshold']:7.4f}" if "threshold" in point else f"{'':7}"
        sensitivity, specificity = as_text(point["sensitivity"]), as_text(point["specificity"])
        print(f"{name:17}{threshold}  {sensitivity:24}{specificity}")


def print_localisation(localisation: dict[str, Any] | None) -> None:
    """Print the pointing game, the heat in the boxes and FROC, if there are boxes."""
    if localisation:
        game, energy = localisation["pointing_game"], localisation["energy_in_box"]
        print(f"\nheat maps: hottest pixel in a fracture box, {game['map']['n']} test images")
        for who in game:
            print(f"{who:13}{as_text(game[who]):24}heat in boxes {as_text(energy[who])}")
        for rate, found in localisation["froc"]["sensitivity"].items():
            print(f"{rate:>4} false marks a film: {as_text(found)} of {found['n']} boxes found")
