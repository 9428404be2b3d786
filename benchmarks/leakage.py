"""How much does a careless split flatter the test metrics? Prints a table of docs/split.md.

    python -m benchmarks.leakage FRACATLAS        # some minutes on two cores

The recipe is train.py's with EfficientNet-Lite0; only the split differs.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFile
from torch import nn
from tqdm import tqdm

from fracture.data.images import ImageFiles
from fracture.data.manifest import Row
from fracture.data.splitting import assign_splits, scan_dataset
from fracture.evaluation.metrics import evaluate_decisions, evaluate_ranking, group_bootstrap
from fracture.features.extract import Compute, run_batches
from fracture.models.backbone import FeatureSpec
from fracture.models.head import build_head, predict_logits
from fracture.models.weights import find_weights
from fracture.training import minibatches, selection_key, train_epoch, validate

SEEDS = range(20)
NAMES = ("accuracy", "roc_auc", "sensitivity", "specificity")


def lite0_features(paths: Sequence[Path]) -> torch.Tensor:
    """(N, 1280) features of EfficientNet-Lite0 with ImageNet weights, squashed to 224 pixels."""
    weights = find_weights("efficientnet-lite0", "imagenet", 0)
    spec = FeatureSpec("efficientnet-lite0", weights, 224, "squash", "float32")
    compute = Compute(torch.device("cpu"), "float32", workers=0)
    backbone = spec.build(compute.device)
    batches = run_batches(backbone, ImageFiles(paths, 224, "squash"), 224, compute)
    return torch.cat([torch.from_numpy(features) for _, features, _ in batches])


def trained_head(features: torch.Tensor, labels: torch.Tensor, splits: np.ndarray) -> nn.Module:
    """The epoch with the best validation accuracy, as train.py picks it."""
    train, val = ((features[splits == name], labels[splits == name]) for name in ("train", "val"))
    torch.manual_seed(42)
    head, best = build_head(features.shape[1], 0.5), build_head(features.shape[1], 0.5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    loss_function, keys = nn.CrossEntropyLoss(), [(-1.0, 0.0)]
    for epoch in range(1, 21):
        torch.manual_seed(42 + epoch)
        train_epoch(head, minibatches(*train, 16), loss_function, optimizer)
        metrics = validate(predict_logits(head, val[0]), val[1], loss_function)
        keys.append(selection_key(metrics, "val_accuracy"))
        if keys[-1] > max(keys[:-1]):
            best.load_state_dict(head.state_dict())
    return best


def p_fractured(head: nn.Module, features: torch.Tensor) -> np.ndarray:
    return predict_logits(head, features).softmax(1)[:, 0].numpy()


def measure(title: str, features: torch.Tensor, rows: Sequence[Row], copies: list[str]) -> None:
    """Print a line of the table: mean and deviation over the seeds.

    Args:
        title: of the line.
        features: (N, width).
        rows: the N images, with the groups that the split respects.
        copies: the true group of each image.
    """
    labels = torch.tensor([int(row.label != "Fractured") for row in rows])
    results, with_copy, others = [], [], []
    for seed in tqdm(SEEDS, title, leave=False):
        splits = np.array([row.split for row in assign_splits(rows, (0.8, 0.1, 0.1), seed)])
        is_test = splits == "test"
        p = p_fractured(trained_head(features, labels, splits), features[is_test])
        truth = labels[is_test].numpy() == 0
        draws = group_bootstrap(np.arange(len(p)), 1)  # the intervals are not used here
        metrics = evaluate_decisions(truth, p >= 0.5, draws) | evaluate_ranking(truth, p, draws)
        results.append([metrics[name]["value"] for name in NAMES])
        seen = {copy for copy, split in zip(copies, splits, strict=True) if split == "train"}
        has_copy = np.array([copies[i] in seen for i in np.flatnonzero(is_test)])
        with_copy += [*((p >= 0.5) == truth)[has_copy]]
        others += [*((p >= 0.5) == truth)[~has_copy]]
    cells = zip(np.mean(results, 0), np.std(results, 0, ddof=1), strict=True)
    print(f"| {title} | {len(rows):,} |", " | ".join(f"{m:.3f} ± {sd:.3f}" for m, sd in cells), "|")
    if with_copy:
        found = f"{len(with_copy)} test images in {len(SEEDS)} splits had a copy in train"
        print(
            f"  {found}: accuracy {np.mean(with_copy):.3f} there, {np.mean(others):.3f} elsewhere"
        )


def main() -> None:
    root = Path(sys.argv[1])
    rows = scan_dataset(root)
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # what a careless program does
    features = lite0_features([root / row.image for row in rows])
    torch.set_num_threads(1)
    print(f"| split | files | {' | '.join(NAMES)} |")
    kinds: dict[str, Callable[[Row], bool]] = {
        "ours: grouped, copies and contradictions excluded": lambda row: not row.split,
        "random, all decodable files": lambda row: bool(row.group),
        "random, all files, truncated ones forced open": lambda row: True,  # noqa: ARG005
    }
    for title, keep in kinds.items():
        chosen = [i for i, row in enumerate(rows) if keep(row)]
        picked = [rows[i] for i in chosen]
        if title.startswith("random"):
            picked = [replace(row, split="", group=row.image) for row in picked]
        measure(title, features[chosen], picked, [rows[i].group or rows[i].image for i in chosen])


if __name__ == "__main__":
    main()
