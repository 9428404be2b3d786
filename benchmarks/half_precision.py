"""Do features kept in half precision change a decision? The cache's docstring quotes the answer.

    python -m benchmarks.half_precision FRACATLAS

EfficientNet-Lite0, trained twice on each of 20 splits: on float32 features and on float16 ones.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.leakage import SEEDS, lite0_features, p_fractured, trained_head
from fracture.data.splitting import assign_splits, scan_dataset
from fracture.evaluation.metrics import choose_thresholds


def main() -> None:
    root = Path(sys.argv[1])
    rows = [row for row in scan_dataset(root) if not row.split]
    labels = torch.tensor([int(row.label != "Fractured") for row in rows])
    features = lite0_features([root / row.image for row in rows])
    torch.set_num_threads(1)
    decisions, changed, gap = 0, 0, 0.0
    for seed in tqdm(SEEDS, "splits"):
        splits = np.array([row.split for row in assign_splits(rows, (0.8, 0.1, 0.1), seed)])
        truth, found = labels[splits == "val"].numpy() == 0, []
        for kept in (features, features.half().float()):
            head = trained_head(kept, labels, splits)
            thresholds = choose_thresholds(truth, p_fractured(head, kept[splits == "val"]))
            p = p_fractured(head, kept[splits == "test"])
            found.append((p, p >= np.array([*thresholds.values()])[:, None]))
        (p, decided), (half_p, half_decided) = found
        decisions += decided.size
        changed += int((decided != half_decided).sum())
        gap = max(gap, float(abs(p - half_p).max()))
    print(f"{changed} of {decisions:,} decisions changed; probabilities by at most {gap:.5f}")


if __name__ == "__main__":
    main()
