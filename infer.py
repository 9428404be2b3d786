"""Evaluate a trained run on the test split, or predict image files with it.

    python infer.py                       # the latest run on the test split
    python infer.py --run NAME            # another run
    python infer.py film.jpg folder/      # probabilities for files

Backbone, weights, preprocessing and classes come from the run's checkpoint, not
from config.yaml; so does the split, if the one in config.yaml is another.
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
from fracture.manifest import FILE_NAME, Split, read_manifest, read_split
from fracture.metrics import evaluate
from fracture.model import Head, feature_width, find_weights

THRESHOLD = 0.5  # the protocol's: the more probable class


def main(config: Config, files: Sequence[str]) -> None:
    paths = find_images(files)
    folder = find_run(config.run)
    checkpoint = load_checkpoint(folder / "best.pt")
    device, precision = pick_device(config.device, config.precision)
    model = restore(checkpoint, config.weights, precision)
    execution = (config.batch_size, config.workers, device)
    weights = "RANDOM" if checkpoint["weights"] == "none" else checkpoint["weights"]
    name = f"{model.recipe.backbone}, {weights} weights"
    print(f"run {folder.name}, epoch {checkpoint['epoch']}: {name}")
    if paths:
        print_predictions(model, paths, *execution)
        return

    split = own_split(checkpoint, Path(config.split_dir))
    features, rows, unreadable = cached_features(
        split, model.recipe, Path(config.cache_dir), *execution
    )
    if not rows:
        raise InputError(f"{split.folder}: no test image can be read")
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
        writer.writerow(["image", "label", model.column, "predicted", "note"])
        for row, p in zip(rows, p_positive, strict=True):
            writer.writerow([row.image, row.label, f"{p:.8f}", model.decide(p), ""])
        for row, reason in unreadable.items():
            writer.writerow([row.image, row.label, "", "", f"unreadable: {reason}"])
    print_figures(figures, model)
    if unreadable:
        print(f"\nleft out as unreadable: {len(unreadable)}, named in predictions.csv")
    print(f"\ntest accuracy {figures['accuracy']['value']:.4f}")
    print(f"metrics.json and predictions.csv are in {results}")


def own_split(checkpoint: dict[str, Any], split_dir: Path) -> Split:
    """The test images of the split that a run was trained on: as configured now, or as then.

    Raises:
        InputError: neither place holds that split; another's test images may have trained the run.
    """
    then = Path(checkpoint["settings"]["split_dir"])
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

    @property
    def column(self) -> str:
        return f"p_{self.positive.lower()}"

    def decide(self, p_positive: float) -> str:
        return self.positive if p_positive >= THRESHOLD else self.negative


def restore(checkpoint: dict[str, Any], own_weights: str, precision: str) -> Model:
    """Rebuild what was trained.

    Args:
        checkpoint: as train.py saved it.
        own_weights: the setting `weights`, for a run trained on a file that has moved since.
        precision: of the backbone on this machine.

    Raises:
        InputError: the backbone's weights or the preprocessing here are not those of the training.
    """
    trained, then = checkpoint["recipe"], checkpoint["settings"]
    moved = checkpoint["weights"].startswith("file ") and not Path(then["weights"]).is_file()
    weights = find_weights(
        trained["backbone"], own_weights if moved else then["weights"], then["seed"]
    )
    recipe = Recipe(trained["backbone"], weights, trained["image_size"], trained["fit"], precision)
    for name, value in recipe.describe().items():
        if value != trained[name] and name != "precision":
            raise InputError(
                f"the run was trained with {name} {trained[name]} ({checkpoint['weights']} "
                f"weights), not {value}; pass its --weights FILE, or train again"
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
    kinds = {kind for kind, name in Image.registered_extensions().items() if name in Image.OPEN}
    paths: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir() and name:
            inside = sorted(path.rglob("*"))
            paths += [file for file in inside if file.suffix.lower() in kinds and file.is_file()]
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{name!r}: no such file or folder")
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
    batches = backbone_pass(paths, None, model.recipe, batch_size, workers, device)
    for done, vectors, bad in batches:
        for index, p in zip(done, model.p_positive(torch.from_numpy(vectors)), strict=True):
            lines[index] = f"{p:11.4f}  {model.decide(p):15}{paths[index]}"
        unreadable |= bad
    if not lines:
        raise InputError(f"no file could be read: {paths[0]}: {unreadable[0]}")
    for index, reason in unreadable.items():
        lines[index] = f"{'':11}  {'unreadable':15}{paths[index]}: {reason}"
    print(f"{model.column:11}  {'predicted':15}file")
    print("\n".join(lines[index] for index in range(len(paths))))


def print_figures(figures: dict[str, Any], model: Model) -> None:
    titles = {"accuracy": "test accuracy", "roc_auc": "ROC-AUC"}
    print(f"{'':14}{'value':>9}   {'95 % interval':16}  images")
    for name in ("accuracy", "sensitivity", "specificity", "roc_auc"):
        figure = figures[name]
        value = "undefined" if figure["value"] is None else f"{figure['value']:.4f}"
        interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
        print(f"{titles.get(name, name):14}{value:>9}   {interval:16}{figure['n']:>8,}")
    counts = figures["confusion_matrix"]
    positives, negatives = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    commoner = model.positive if positives > negatives else model.negative
    share = max(positives, negatives) / (positives + negatives)
    print(f"\nalways answering {commoner} would have an accuracy of {share:.4f}")
    print(f"\n{'true':16}{'predicted ' + model.positive:>24}{model.negative:>16}")
    print(f"{model.positive:16}{counts['tp']:24,}{counts['fn']:16,}")
    print(f"{model.negative:16}{counts['fp']:24,}{counts['tn']:16,}")


if __name__ == "__main__":
    with exit_status():
        main(CONFIG, ARGUMENTS.files)
