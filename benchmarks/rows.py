"""How the head's training grows with the number of features, all of them in memory.

    python -m benchmarks.rows           # 1,000,000 rows take 9.2 GB

The features are made up, as wide as EfficientNet-B6's.
"""

from time import perf_counter

import torch
from torch import nn

from fracture.models.head import build_head
from fracture.training import minibatches, train_epoch

WIDTH = 2304


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'rows':>10}{'GB':>8}{'epoch, s':>10}{'ms a row':>10}")
    for rows in (1_000, 10_000, 100_000, 1_000_000):  # the first warms up
        features, labels = torch.rand(rows, WIDTH), torch.arange(rows) % 2
        head = build_head(WIDTH, 0.5)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
        start = perf_counter()
        train_epoch(head, minibatches(features, labels, 16), nn.CrossEntropyLoss(), optimizer)
        seconds = perf_counter() - start
        size = features.nbytes / 1e9
        print(f"{rows:10,}{size:8.2f}{seconds:10.2f}{seconds / rows * 1000:10.4f}")


if __name__ == "__main__":
    main()
