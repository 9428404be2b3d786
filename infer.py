"""Evaluate a trained run on the test split, or predict image files with it.

    python infer.py                       # the latest run on the test split
    python infer.py --run NAME            # another run
    python infer.py film.jpg folder/      # a table, one line a file
    find . -name '*.png' | python infer.py - --at sensitivity90 --out found.csv
    python infer.py --compare A B         # two tested runs: is A better than B?
    python infer.py --pool fold-1 fold-2 fold-3     # all folds of a split

Backbone, weights, preprocessing, classes, temperature and thresholds come from
the run's checkpoint, not from config.yaml; so does the split, if the one in
config.yaml is another. Test images choose nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fracture.cli import InputError, exit_status, one_line
from fracture.config import POINTS, Config, parse_settings, settings_parser

if __name__ == "__main__":
    with exit_status():  # before the slow imports: --help and a wrong setting answer at once
        PARSER = settings_parser(__doc__, "[FILE_OR_FOLDER ...] ")
        add = PARSER.add_argument
        add("files", nargs="*", default=[], help="images or folders to predict; - reads paths")
        at = "operating point that decides: protocol (0.5), sensitivity90 or youden [%(default)s]"
        add("--at", choices=POINTS, metavar="POINT", default=POINTS[0], help=at)
        add("--out", metavar="FILE", help="write the predictions to a .csv or .json file too")
        add("--heatmaps", metavar="DIR", help="write each film with its heat map as a PNG")
        add("--compare", nargs=2, metavar="RUN", help="paired comparison of two tested runs")
        add("--pool", nargs="+", metavar="RUN", help="figures over several folds' tested runs")
        CONFIG, ARGUMENTS = parse_settings(PARSER)

import numpy as np
from jsonargparse import Namespace
from PIL import Image

from fracture.atomic import scratch, swap
from fracture.data.manifest import (
    FILE_NAME,
    Row,
    Split,
    check_unchanged,
    read_manifest,
    read_split,
    source_of,
)
from fracture.evaluation.cam import heat_maps, localisation, overlay, read_boxes
from fracture.evaluation.compare import compare_runs, pool_runs
from fracture.evaluation.predict import find_images, predict, write_predictions
from fracture.evaluation.report import as_text, draw_plots, print_table, write_report
from fracture.evaluation.test_set import evaluate_test
from fracture.features.cache import StoredFeatures
from fracture.features.distributed import rank
from fracture.features.extract import cached_features, pick_device
from fracture.models.classifier import Classifier, restore
from fracture.runs.checkpoint import find_run, load_checkpoint, run_settings
from fracture.runs.history import read_history
from fracture.runs.tracking import log_results, pick_mode


def main(config: Config, arguments: Namespace) -> None:
    if arguments.compare or arguments.pool:
        runs = [find_run(name) for name in arguments.compare or arguments.pool]
        (compare_runs if arguments.compare else pool_runs)(runs)
        return
    if (arguments.out or arguments.heatmaps) and not arguments.files:
        raise InputError("--out and --heatmaps are for the files to predict, and none is given")
    paths = find_images(arguments.files)
    folder = find_run(config.run)
    checkpoint = load_checkpoint(folder / "best.pt")
    device, precision = pick_device(config.device, config.precision)
    # A checkpoint alone will do, where the places are given.
    then = run_settings(folder) if (folder / "config.yaml").is_file() else asdict(config)
    weights_file = then["weights"] if Path(then["weights"]).is_file() else config.weights
    try:
        classifier = restore(checkpoint, weights_file, precision)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'best.pt'}: of another program: {one_line(error)}") from error
    execution = config.workers, device
    weights = "RANDOM" if checkpoint["weights"] == "none" else checkpoint["weights"]
    name = f"{classifier.recipe.backbone}, {weights} weights"
    print(f"run {folder.name}, epoch {checkpoint['epoch']}: {name}")
    if paths:
        predict(classifier, paths, arguments.at, arguments.out, arguments.heatmaps, *execution)
        return

    # What was trained without sending anything is tested so, unless the settings say otherwise.
    quiet = config.wandb_mode == "auto" and then.get("wandb_mode") in ("offline", "disabled")
    wandb_mode = pick_mode(then["wandb_mode"] if quiet else config.wandb_mode)
    split = own_split(checkpoint, Path(config.split_dir), Path(then["split_dir"]))
    history = read_history(folder)
    if not any(epoch.get("best") for epoch in history):
        raise InputError(f"{folder / 'history.jsonl'}: no epoch is the best; train again")
    features, rows, unreadable = cached_features(
        split, classifier.recipe, Path(config.cache_dir), *execution
    )
    if rank() > 0:  # of several processes the first goes on
        return
    for label in split.classes:
        if label not in {row.label for row in rows}:
            raise InputError(f"{split.folder}: test has no readable image of {label}")
    origin = {
        "run": folder.name,
        "backbone": classifier.recipe.backbone,
        "weights": checkpoint["weights"],
        "best_epoch": checkpoint["epoch"],
        "positive_class": classifier.positive,
        "unreadable": len(unreadable),
        "manifest_sha256": split.sha256,
        "provenance": provenance(checkpoint, split),
    }
    output = folder / "test"
    with scratch(output) as new:
        p = classifier.p_positive(features)
        write_predictions(new / "predictions.csv", classifier, rows, p, unreadable)
        written = (new / "predictions.csv").read_bytes()
        origin["predictions_sha256"] = hashlib.sha256(written).hexdigest()
        settings = checkpoint["settings"]
        results = evaluate(classifier, split, features, rows, history, settings, origin, new)
        swap(new, output, replace=True)
    print_figures(results)
    if unreadable:
        print(f"\nleft out as unreadable: {len(unreadable)}, named in predictions.csv")
    print()
    log_results(wandb_mode, config.wandb_project, folder, results, output)
    print(f"test accuracy {results['accuracy']['value']:.4f}")
    print(f"report.html, metrics.json and predictions.csv are in {output}")


def evaluate(
    classifier: Classifier,
    split: Split,
    features: StoredFeatures,
    rows: Sequence[Row],
    history: list[dict[str, Any]],
    settings: dict[str, Any],
    origin: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """All figures, and from them metrics.json, the plots and report.html.

    Args:
        classifier: from `restore`.
        split: the test images.
        features: (N, width), of the readable ones.
        rows: the N readable images.
        history: a line for each epoch.
        settings: of the training.
        origin: what the results are of, to be written with them.
        output: folder for them.
    """
    all_rows = read_manifest(split.folder)[0]
    train_rows = [row for row in all_rows if row.split == "train"]
    margin = classifier.margin(features)
    sizes = np.array([(split.folder / row.place).stat().st_size for row in rows])
    results = origin | evaluate_test(classifier, margin, rows, train_rows, sizes)
    films, results["localisation"] = look(classifier, split, rows, classifier.p_positive(features))
    drawn = draw_plots(results, classifier, margin, rows, history)
    write_report(output, results, drawn, films, all_rows, settings)
    (output / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def own_split(checkpoint: dict[str, Any], split_dir: Path, then: Path) -> Split:
    """The test images of the split that a run was trained on: as configured now, or as then.

    Raises:
        InputError: neither place holds that split; another's test images may have trained the run.
    """
    for folder in (split_dir, then):
        found = (folder / FILE_NAME).is_file() and read_manifest(folder)[1]
        if found == checkpoint["manifest_sha256"]:
            if folder != split_dir:
                print(f"{split_dir} is not this run's split; its own is {folder}, tested here")
            return read_split(folder, "test")
    raise InputError(
        f"neither {split_dir} nor {then} holds the split that this run was trained on; make it "
        "again with its seed and data, or pass --split_dir, or train again"
    )


def provenance(checkpoint: dict[str, Any], split: Split) -> dict[str, str]:
    """What the results depend on: hashes and versions."""
    packages = ("torch", "efficientnet-pytorch", "pillow", "numpy", "scikit-learn")
    return {
        "split (sha256 of its manifest)": split.sha256,
        "backbone's weights": checkpoint["recipe"]["weights"],
        "preprocessing": f"version {checkpoint['recipe']['preprocessing']}",
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
    }


def look(
    classifier: Classifier, split: Split, rows: Sequence[Row], p: np.ndarray
) -> tuple[dict[str, list[tuple[str, float, Image.Image]]], dict[str, Any] | None]:
    """Heat maps of the worst misses and false alarms, and how well those of fractures point."""
    positive = np.array([row.label == classifier.positive for row in rows])
    order = np.argsort(p)
    worst = {
        "Worst misses": [int(i) for i in order if positive[i] and p[i] < 0.5][:6],
        "Worst false alarms": [int(i) for i in order[::-1] if not positive[i] and p[i] >= 0.5][:6],
    }
    source = source_of(split.folder)
    boxes = read_boxes(source.with_suffix("") if source.suffix == ".zip" else source)
    boxed = [i for i in np.flatnonzero(positive).tolist() if Path(rows[i].image).name in boxes]
    wanted = sorted({*boxed, *(i for some in worst.values() for i in some)})
    for i in wanted:
        check_unchanged(split.folder, rows[i])
    paths = {i: split.folder / rows[i].place for i in wanted}
    heats = dict(zip(wanted, heat_maps(classifier, [*paths.values()]), strict=True))
    films = {
        heading: [(paths[i].name, float(p[i]), overlay(paths[i], heats[i], 400)) for i in some]
        for heading, some in worst.items()
    }
    scored = {paths[i].name: heats[i] for i in boxed}
    return films, localisation(scored, boxes) if scored else None


def print_figures(results: dict[str, Any]) -> None:
    print_table(results)
    print("\nbaselines, without looking at an image")
    for name, figures in results["baselines"].items():
        auc = f", ROC-AUC {as_text(figures['roc_auc'])}" if "roc_auc" in figures else ""
        print(f"{name:20}accuracy {as_text(figures['accuracy'])}{auc}")
    print(f"\n{'operating point':17}{'from':>7}  {'sensitivity':24}{'specificity':24}")
    for name, point in results["operating_points"].items():
        cells = (f"{as_text(point[figure]):24}" for figure in ("sensitivity", "specificity"))
        print(f"{name:17}{point['threshold']:7.4f}  {''.join(cells)}".rstrip())
    if found := results["localisation"]:
        game, energy = found["pointing_game"], found["energy_in_box"]
        print(f"\nheat maps on {game['map']['n']} test images with fracture boxes")
        for who in ("map", "centred blob", "uniform"):
            print(f"{who:14}in a box {as_text(game[who]):24}  heat in boxes {as_text(energy[who])}")


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS)
