"""Evaluate a trained run on the test split, or predict image files with it.

    python infer.py                       # the latest run on the test split
    python infer.py --run NAME            # another run
    python infer.py film.jpg folder/      # probabilities for files

Backbone, weights, preprocessing and classes come from the run's checkpoint, not from config.yaml.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fracture.config import Config, parse_settings, settings_parser
from fracture.errors import InputError, exit_status

if __name__ == "__main__":
    with exit_status():  # before the slow imports: --help and a wrong setting answer at once
        PARSER = settings_parser(__doc__, "[FILE_OR_FOLDER ...] ")
        PARSER.add_argument("files", nargs="*", default=[], help="images or folders to predict")
        CONFIG, ARGUMENTS = parse_settings(PARSER)

import numpy as np
import torch
from PIL import Image

from fracture.checkpoint import find_run, load_checkpoint
from fracture.features import Recipe, backbone_pass, cached_features, pick_device
from fracture.manifest import read_split
from fracture.metrics import evaluate
from fracture.model import NORMALISATION, Head, feature_width, find_weights

THRESHOLD = 0.5  # the protocol's: the more probable class


def main(config: Config, files: Sequence[str]) -> None:
    paths = find_images(files)
    folder = find_run(config.run)
    checkpoint = load_checkpoint(folder / "best.pt")
    device, precision = pick_device(config.device, config.precision)
    model = restore(checkpoint, config.weights, precision)
    print(f"{folder}: {model.recipe.backbone}, {checkpoint['weights']} weights, best epoch of run")
    execution = (config.batch_size, config.workers, device)
    if paths:
        print_predictions(model, paths, *execution)
        return

    split = read_split(Path(config.split_dir), "test")
    if split.sha256 != checkpoint["manifest_sha256"]:
        raise InputError(
            f"{folder} was trained on another split than {config.split_dir}, so these test images "
            f"may have trained it; pass --split_dir {checkpoint['settings']['split_dir']}"
        )
    features, rows, unreadable = cached_features(
        split, model.recipe, Path(config.cache_dir), *execution
    )
    p_positive = model.p_positive(features)
    is_positive = np.array([row.label == model.positive for row in rows])
    figures = evaluate(is_positive, p_positive, THRESHOLD)
    origin = {
        "run": folder.name,
        "backbone": model.recipe.backbone,
        "weights": checkpoint["weights"],
        "best_epoch": checkpoint["epoch"],
        "positive_class": model.positive,
        "threshold": THRESHOLD,
        "unreadable": len(unreadable),
        "manifest_sha256": split.sha256,
    }
    results = folder / "test"
    results.mkdir(exist_ok=True)
    (results / "metrics.json").write_text(json.dumps(figures | origin, indent=2) + "\n")
    with (results / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "p_fractured", "predicted", "note"])
        for row, p in zip(rows, p_positive, strict=True):
            writer.writerow([row.image, row.label, f"{p:.6f}", model.decide(p), ""])
        for row, reason in unreadable.items():
            writer.writerow([row.image, row.label, "", "", f"unreadable: {reason}"])
    print_figures(figures, model)
    accuracy = f"{figures['accuracy']['value']:.4f}" if rows else "undefined"
    print(f"\ntest accuracy {accuracy}; metrics.json and predictions.csv in {results}")


@dataclass(frozen=True)
class Model:
    """A trained head with all that it needs to judge an image; nothing is left to choose."""

    head: Head
    recipe: Recipe
    positive: str
    negative: str
    positive_index: int

    @torch.inference_mode()
    def p_positive(self, features: torch.Tensor) -> np.ndarray:
        """(N, width) features to the (N,) probabilities of the positive class."""
        return self.head(features).softmax(1)[:, self.positive_index].numpy()

    def decide(self, p_positive: float) -> str:
        return self.positive if p_positive >= THRESHOLD else self.negative


def restore(checkpoint: dict[str, Any], own_weights: str, precision: str) -> Model:
    """Rebuild what was trained.

    Args:
        checkpoint: as train.py saved it.
        own_weights: the setting `weights`, for a run that was trained on a file of the user's.
        precision: of the backbone on this machine.

    Raises:
        InputError: the backbone's weights or the preprocessing here are not those of the training.
    """
    trained, source = checkpoint["recipe"], checkpoint["weights"]
    known = source in (*NORMALISATION, "none")
    seed = checkpoint["settings"]["seed"]
    weights = find_weights(trained["backbone"], source if known else own_weights, seed)
    recipe = Recipe(trained["backbone"], weights, trained["image_size"], trained["fit"], precision)
    for name, value in recipe.describe().items():
        if value != trained[name] and name != "precision":
            raise InputError(
                f"the run was trained with {name} {trained[name]} ({source}), not {value}; "
                "pass the --weights it was trained with, or train again"
            )
    head = Head(feature_width(recipe.backbone), dropout=0).eval()
    head.load_state_dict(checkpoint["head"])
    index = checkpoint["classes"].index(checkpoint["positive_class"])
    negative = checkpoint["classes"][1 - index]
    return Model(head, recipe, checkpoint["positive_class"], negative, index)


def find_images(given: Sequence[str]) -> list[Path]:
    """The files given, and in folders every file of a kind that Pillow reads.

    Raises:
        InputError: a path does not exist, or there is no image in the folders.
    """
    kinds = Image.registered_extensions()
    paths: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        inside = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in kinds)
        paths += inside if path.is_dir() else [path]
    if given and not paths:
        raise InputError(f"{', '.join(given)}: no images in here")
    return paths


def print_predictions(
    model: Model, paths: Sequence[Path], batch_size: int, workers: int, device: torch.device
) -> None:
    """Print a line for each file, in order; an unreadable one gets its reason and stops nothing.

    Raises:
        InputError: not one of the files could be read.
    """
    lines: dict[int, str] = {}
    unreadable: dict[int, str] = {}
    for done, vectors, bad in backbone_pass(paths, model.recipe, batch_size, workers, device):
        for index, p in zip(done, model.p_positive(torch.from_numpy(vectors)), strict=True):
            lines[index] = f"{p:11.4f}  {model.decide(p):15}{paths[index]}"
        unreadable |= bad
    if not lines:
        raise InputError(f"no file could be read: {paths[0]}: {unreadable[0]}")
    for index, reason in unreadable.items():
        lines[index] = f"{'':11}  {'unreadable':15}{paths[index]}: {reason}"
    print(f"{'p_fractured':11}  {'predicted':15}file")
    print("\n".join(lines[index] for index in range(len(paths))))


def print_figures(figures: dict[str, Any], model: Model) -> None:
    titles = {"accuracy": "test accuracy", "roc_auc": "ROC-AUC"}
    for name in ("accuracy", "sensitivity", "specificity", "roc_auc"):
        figure = figures[name]
        value = "undefined" if figure["value"] is None else f"{figure['value']:.4f}"
        interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
        print(f"{titles.get(name, name):14}{value:>9}   {interval:14}  n {figure['n']:,}")
    counts = figures["confusion_matrix"]
    positives, negatives = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    share = max(positives, negatives) / (positives + negatives)
    print(f"{'(one answer for all would score':31} {share:.4f})")
    print(f"\n{'true':16}{'predicted ' + model.positive:>24}{model.negative:>16}")
    print(f"{model.positive:16}{counts['tp']:24,}{counts['fn']:16,}")
    print(f"{model.negative:16}{counts['fp']:24,}{counts['tn']:16,}")


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS.files)
