"""How the search for near-copies grows with the number of images.

    python -m benchmarks.near_copies FRACATLAS

More images than FracAtlas has are made from its own: turned, mirrored and enlarged, none a copy.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from fracture.data.fracatlas import find_radiographs
from fracture.data.images import scan_image
from fracture.data.near_copies import candidates, descriptors


def main() -> None:
    root = Path(sys.argv[1])
    paths = [root / row.image for row in find_radiographs(root)]
    with ThreadPoolExecutor() as pool:
        found = {report.pixels: report for report in pool.map(scan_image, paths)}
    films = np.stack([report.thumbnail for report in found.values() if not report.error])
    enlarged = films[:, 16:80, 16:80].repeat(3, 1).repeat(3, 2)[:, ::2, ::2]
    turned = (np.rot90(f, turns, (1, 2)) for f in (films, enlarged) for turns in range(4))
    variants = (np.ascontiguousarray(images[:, :, ::step]) for images in turned for step in (1, -1))
    hashes = np.concatenate([descriptors(images) for images in variants])
    hashes = np.random.default_rng(0).permutation(hashes)
    print(f"{'images':>8}{'seconds':>10}{'per n log n':>13}{'pairs':>10}")
    for n in (4_000, 16_000, len(hashes)):
        seconds = []
        for _ in range(5):
            start = perf_counter()
            pairs = candidates(hashes[:n], hashes[:n])
            seconds.append(perf_counter() - start)
        cost = min(seconds) / (n * np.log(n)) * 1e9
        print(f"{n:8,}{min(seconds):10.3f}{cost:10.0f} ns{len(pairs) // 2:10,}")


if __name__ == "__main__":
    main()
