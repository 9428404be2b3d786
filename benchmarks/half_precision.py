"""Whether features kept in half precision change a decision; not a test.

    python -m benchmarks.half_precision FRACATLAS

EfficientNet-Lite0, trained twice on each of 20 splits: on float32 features and on float16 ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.leakage import tested, trained_head
from fracture.data.images import load_image
from fracture.evaluation.metrics import choose_thresholds
from fracture.models.backbone import build_backbone, find_weights
from split_dataset import assign_splits, read_rows

SEEDS = range(20)


@torch.inference_mode()
def float32_features(paths: list[Path]) -> torch.Tensor:
    name = "efficientnet-lite0"
    backbone = build_backbone(name, 224, find_weights(name, "imagenet", 0))
    vectors = []
    for start in tqdm(range(0, len(paths), 16), "backbone"):
        films = [load_image(path.read_bytes(), 224, "squash") for path in paths[start : start + 16]]
        vectors.append(backbone(torch.from_numpy(np.stack(films))))
    return torch.cat(vectors)


def main() -> None:
    root = Path(sys.argv[1])
    rows = [row for row in read_rows(root) if not row.split]
    labels = torch.tensor([int(row.label != "Fractured") for row in rows])
    features = float32_features([root / row.image for row in rows]).clone()
    torch.set_num_threads(1)
    decisions, changed, gap = 0, 0, 0.0
    for seed in tqdm(SEEDS, "splits"):
        splits = np.array([row.split for row in assign_splits(rows, (0.8, 0.1, 0.1), seed)])
        validation, found = labels[splits == "val"].numpy() == 0, []
        for kept in (features, features.half().float()):
            head = trained_head(kept, labels, splits)
            chosen = choose_thresholds(validation, tested(head, kept[splits == "val"])).values()
            p = tested(head, kept[splits == "test"])
            found.append((p, p >= np.array([*chosen])[:, None]))
        (p, decided), (half_p, half_decided) = found
        decisions += decided.size
        changed += int((decided != half_decided).sum())
        gap = max(gap, float(abs(p - half_p).max()))
    print(f"{changed} of {decisions:,} decisions changed; probabilities by at most {gap:.5f}")


if __name__ == "__main__":
    main()
