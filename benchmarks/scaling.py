"""How the search for near-copies grows with the number of images; not a test.

    python -m benchmarks.scaling FRACATLAS

More images than FracAtlas has are made of its own: turned, mirrored and enlarged, which no copy is.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from fracture.data.fracatlas import find_radiographs
from fracture.data.images import inspect
from fracture.data.near_copies import candidates, descriptors


def main() -> None:
    paths = [radiograph.path for radiograph in find_radiographs(Path(sys.argv[1]))]
    with ThreadPoolExecutor() as pool:
        found = {finding.pixels: finding for finding in pool.map(inspect, paths)}
    films = np.stack([finding.thumbnail for finding in found.values() if not finding.fault])
    enlarged = films[:, 16:80, 16:80].repeat(3, 1).repeat(3, 2)[:, ::2, ::2]
    hashes = np.concatenate(
        [
            descriptors(np.ascontiguousarray(np.rot90(images, turns, (1, 2))[:, :, ::step]))
            for images in (films, enlarged)
            for turns in range(4)
            for step in (1, -1)
        ]
    )
    hashes = np.random.default_rng(0).permutation(hashes)
    print(f"{'hashes':>8}{'seconds':>10}{'ratio':>8}{'n log n':>9}{'pairs':>10}")
    before = before_n = 0.0
    for n in (4_000, 16_000, len(hashes)):
        seconds = []
        for _ in range(5):
            start = perf_counter()
            pairs = candidates(hashes[:n], hashes[:n])
            seconds.append(perf_counter() - start)
        best = min(seconds)
        ideal = n * np.log(n) / before_n if before else np.nan
        print(
            f"{n:8,}{best:10.3f}{best / before if before else np.nan:8.1f}{ideal:9.1f}"
            f"{len(pairs) // 2:10,}"
        )
        before, before_n = best, n * np.log(n)


if __name__ == "__main__":
    main()
