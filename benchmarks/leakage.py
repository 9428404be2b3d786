"""How much would a careless split flatter the test figures? Prints README's table; not a test.

    python -m benchmarks.leakage FRACATLAS        # about 8 minutes on two cores

The recipe is train.py's with EfficientNet-Lite0; only the split differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFile
from tqdm import tqdm

from fracture.data.manifest import Row
from fracture.evaluation.metrics import evaluate_decisions, evaluate_ranking, resample
from fracture.features.extract import Recipe, backbone_pass
from fracture.models.backbone import Head, find_weights, head_logits
from split_dataset import assign_splits, read_rows
from train import merit, shuffled, train_epoch, validate

SEEDS = range(20)
NAMES = ("accuracy", "roc_auc", "sensitivity", "specificity")


def trained_head(features: torch.Tensor, labels: torch.Tensor, splits: np.ndarray) -> Head:
    """The epoch of best validation accuracy, as train.py picks it."""
    train_set, val_set = ((features[splits == s], labels[splits == s]) for s in ("train", "val"))
    torch.manual_seed(42)
    head, best = Head(features.shape[1], 0.5), Head(features.shape[1], 0.5)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    scores = []
    for epoch in range(1, 21):
        torch.manual_seed(42 + epoch)
        train_epoch(head, shuffled(*train_set, 16), optimizer)
        figures = validate(head_logits(head, val_set[0]), val_set[1])
        scores.append(merit(figures, "val_accuracy"))
        if scores[-1] > max(scores[:-1], default=(-1, 0)):
            best.load_state_dict(head.state_dict())
    return best.eval()


@torch.inference_mode()
def tested(head: Head, features: torch.Tensor) -> np.ndarray:
    return head(features).softmax(1)[:, 0].numpy()


def measure(title: str, features: torch.Tensor, rows: Sequence[Row], twins: list[str]) -> None:
    """Print a line of the table: mean and deviation over the seeds.

    `twins` names the true group of each row, whatever the split makes of it.
    """
    labels = torch.tensor([int(row.label != "Fractured") for row in rows])
    results, twin_right, rest_right = [], [], []
    for seed in tqdm(SEEDS, title, leave=False):
        splits = np.array([row.split for row in assign_splits(rows, (0.8, 0.1, 0.1), seed)])
        head = trained_head(features, labels, splits)
        p, truth = tested(head, features[splits == "test"]), labels[splits == "test"].numpy() == 0
        draws = resample(np.arange(len(p)), 1)  # the intervals are not used here
        figures = evaluate_decisions(truth, p >= 0.5, draws) | evaluate_ranking(truth, p, draws)
        results.append([figures[name]["value"] for name in NAMES])
        seen = {twin for twin, split in zip(twins, splits, strict=True) if split == "train"}
        has_twin = np.array([twins[i] in seen for i in np.flatnonzero(splits == "test")])
        twin_right += [*((p >= 0.5) == truth)[has_twin]]
        rest_right += [*((p >= 0.5) == truth)[~has_twin]]
    cells = [
        f"{mean:.3f} ± {sd:.3f}"
        for mean, sd in zip(np.mean(results, 0), np.std(results, 0, ddof=1), strict=True)
    ]
    print(f"| {title} | {len(rows):,} | " + " | ".join(cells) + " |")
    if twin_right:
        print(
            f"  a test image's copy was in train {len(twin_right)} times in {len(SEEDS)} splits: "
            f"accuracy {np.mean(twin_right):.3f} there, {np.mean(rest_right):.3f} elsewhere"
        )


def main() -> None:
    root = Path(sys.argv[1])
    rows = read_rows(root)
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # what the careless do; workers=0 keeps it in force
    recipe = Recipe(
        "efficientnet-lite0",
        find_weights("efficientnet-lite0", "imagenet", 0),
        224,
        "squash",
        "float32",
    )
    passed = backbone_pass([root / r.image for r in rows], None, recipe, 0, torch.device("cpu"))
    features = torch.cat([torch.from_numpy(vectors) for _, vectors, _ in passed])
    twins = [row.group or row.image for row in rows]
    print(f"| split | files | {' | '.join(NAMES)} |")
    for title, keep, group in (
        ("grouped, copies and contradictions excluded (ours)", "kept", "own"),
        ("random, all decodable files", "decodable", "none"),
        ("random, all files, cut-off ones forced open", "all", "none"),
    ):
        chosen = [
            i
            for i, row in enumerate(rows)
            if keep == "all" or not row.split or (keep == "decodable" and row.group)
        ]
        picked = [rows[i] for i in chosen]
        if group == "none":
            picked = [replace(row, split="", group=row.image) for row in picked]
        measure(title, features[chosen], picked, [twins[i] for i in chosen])


if __name__ == "__main__":
    main()
