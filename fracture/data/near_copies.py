"""Which images are copies of each other, judged by their pixels alone.

Copies of the same pixels share a hash. A near-copy was re-encoded, rescaled, trimmed by a few
pixels, brightened, turned, or covered at its lower edge (FracAtlas holds truncated files that were
saved again with grey below, so only the upper three quarters are compared). Three steps find them:

1. `descriptors`: 64 low frequencies of a thumbnail, as in a perceptual hash (Zauner,
   "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, sec. 3.2) but not
   rounded to bits.
2. `candidates`: each image's nearest neighbours in a k-d tree of these.
3. `agreement`: a pair is registered, and its fine detail compared block by block. Similar films
   of two patients share outlines, but not the trabeculae of a bone.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.fft import dctn
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample
from tqdm import tqdm

from fracture.data.manifest import Row

# Chosen on FracAtlas, whose copies are nearer than 0.1 to each other and agree by 0.94 or more;
# films of two patients agree by 0.81 at most. See docs/split.md.
RADIUS = 0.2
NEIGHBOURS = 4
AGREEMENT = 0.9

Pair = tuple[int, int, int]  # an image, another one, and quarter turns of the first


def exclude_copies(rows: Sequence[Row], thumbnails: Mapping[str, np.ndarray]) -> list[Row]:
    """Put copies into one group, and exclude those that would count twice or contradict each other.

    Of files with the same pixels the first by name stays. Near-copies stay too, in one group. If
    the labels within a group differ, the whole group is excluded: nobody knows the right one. If
    the publisher put copies into several splits, they stay in test, or else in val.

    Args:
        rows: `group` is the digest of the pixels; those already excluded stay as they are.
        thumbnails: of each such digest, (96, 96) uint8.

    Returns:
        The rows in the same order; a group is named after its first image, whatever its bytes.
    """
    same: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.image):
        if row.split != "excluded":
            same[row.group].append(row)
    numbers = near_copies([thumbnails[digest] for digest in same]).tolist() if same else []
    groups: dict[int, list[Row]] = defaultdict(list)
    for members, number in zip(same.values(), numbers, strict=True):
        groups[number] += members
    judged = {}
    for group in groups.values():
        name = min(row.name for row in group)
        home = min(group, key=lambda row: row.split)  # test before train and val
        for row in group:
            original, reason = same[row.group][0], ""
            if others := [other for other in group if other.label != row.label]:
                twin = min(others, key=lambda other: other.group != row.group)
                alike = "has the same pixels" if twin.group == row.group else "is a near-copy"
                reason = f"contradictory: {twin.image} {alike}"
            elif row is not original or row.split != home.split:
                reason = f"copy of {(home if row is original else original).image}"
            split = "excluded" if reason else row.split
            reason = "; ".join(filter(None, [reason, row.reason]))
            judged[row.image] = replace(row, split=split, group=name, reason=reason)
    return [judged.get(row.image, row) for row in rows]


def upper(images: np.ndarray) -> np.ndarray:
    return images[:, : images.shape[1] * 3 // 4]


def descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 96, 96) uint8 thumbnails to (N, 8, 8) DCT coefficients of unit norm, lowest first.

    The image fades out towards its edges, which trimming and burnt-in markers change.
    """
    small = upper(thumbnails).reshape(-1, 24, 3, 32, 3).mean((2, 4), dtype=np.float32)
    window = np.sqrt(np.outer(np.hanning(26)[1:-1], np.hanning(34)[1:-1]), dtype=np.float32)
    mean = (small * window).sum((1, 2), keepdims=True) / window.sum()
    spectrum = dctn((small - mean) * window, axes=(1, 2), norm="ortho")[:, :8, :8]
    return spectrum / np.maximum(np.linalg.norm(spectrum, axis=(1, 2), keepdims=True), 1e-6)


def candidates(known: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Pairs that may be copies: for each turned image the nearest known ones within `RADIUS`.

    Args:
        known: (N, 8, 8) descriptors.
        turned: (N, 8, 8) descriptors of the same images, each turned alike.

    Returns:
        (P, 2) indices into turned and known.
    """
    # The 12 lowest frequencies find, all 64 decide: a tree of 64 dimensions would be slow. With
    # eps=2 a neighbour may be overlooked between a third of the radius and the whole.
    tree = KDTree(known[:, :3, :4].reshape(len(known), -1))
    coarse = turned[:, :3, :4].reshape(len(known), -1)[tree.indices]  # neighbours in a row: cached
    distance, found = tree.query(coarse, NEIGHBOURS + 1, eps=2, distance_upper_bound=RADIUS)
    hits = np.nonzero(np.isfinite(distance))
    first, second = np.asarray(tree.indices)[hits[0]], np.asarray(found)[hits]
    near = np.linalg.norm(turned[first] - known[second], axis=(1, 2)) < RADIUS
    return np.stack([first, second], 1)[near & (first != second)]


def near_copies(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """Number the groups of near-copies among N (96, 96) uint8 thumbnails.

    Returns:
        (N,) int: images of one number are linked by a chain of near-copies.
    """
    images = np.asarray(thumbnails)
    groups = np.arange(len(images))  # a group's number is its first image
    hashes = [descriptors(np.rot90(images, turns, axes=(1, 2))) for turns in range(4)]
    compared: set[Pair] = set()
    while True:
        # One image represents each group: otherwise many copies of one film would be each other's
        # only neighbours, and hide further copies of it.
        first = np.unique(groups)
        found = set()
        for turns in range(4):
            pairs = first[candidates(hashes[0][first], hashes[turns][first])]
            found |= {(i, j, turns) for i, j in (pairs if turns else np.sort(pairs)).tolist()}
        links = _copies_among(images, sorted(found - compared))
        if not links:
            return groups
        compared |= found
        for i, j, _ in links:
            low, high = sorted(groups[[i, j]])
            groups[groups == high] = low


def _copies_among(images: np.ndarray, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that agree."""
    copies = []
    for start in tqdm(range(0, len(pairs), 128), "comparing", disable=None):
        batch = pairs[start : start + 128]
        moving = np.stack([np.rot90(images[i], turns) for i, _, turns in batch])
        agrees = agreement(moving, images[[j for _, j, _ in batch]]) > AGREEMENT
        copies += [pair for pair, is_copy in zip(batch, agrees, strict=True) if is_copy]
    return copies


def agreement(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """How well pairs of films agree in fine detail, from -1 to 1: nearly 1 for a copy.

    The correlation is taken block by block; the result is its median over the half of the blocks
    with most detail, with the images registered or as they are, whichever agrees better.

    Args:
        moving: (P, 96, 96) uint8 thumbnails.
        fixed: (P, 96, 96) uint8, the other image of each pair.

    Returns:
        (P,) float.
    """
    first, second = (torch.tensor(upper(side)[:, None]).float() for side in (moving, fixed))
    registered = register(first, second)
    maps = (torch.eye(2, 3).expand_as(registered), registered)
    return torch.stack([_detail_agreement(first, second, theta) for theta in maps]).amax(0).numpy()


def _detail_agreement(moving: Tensor, fixed: Tensor, theta: Tensor) -> Tensor:
    warped, inside = warp(moving, theta)
    first, second = ((image - smooth(image, 7)) * inside for image in (warped, fixed))
    products = torch.cat([first * first, second * second, first * second], 1)
    power, other_power, product = avg_pool2d(products, 12).flatten(2).unbind(1)
    detail = (power * other_power).sqrt()
    plain = detail < detail.median(1, keepdim=True).values
    correlation = (product / (detail + 1e-3)).masked_fill(plain, torch.nan)
    return correlation.nanmedian(1).values


def smooth(images: Tensor, width: int) -> Tensor:
    return avg_pool2d(images, width, 1, width // 2, count_include_pad=False)


def warp(images: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """(P, C, H, W) images seen through (P, 2, 3) affine maps, and which pixels come from inside."""
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    warped = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return warped, (grid.abs().amax(-1) <= 1)[:, None]


def register(moving: Tensor, fixed: Tensor, steps: int = 10) -> Tensor:
    """Affine maps from `fixed` to `moving`, as `affine_grid` takes them: (P, 2, 3).

    Gauss-Newton on squared differences, with gain and offset of the brightness fitted as well
    (Lucas and Kanade, IJCAI 1981; Baker and Matthews, IJCV 56:221, 2004, sec. 2).
    """
    moving, fixed = smooth(moving, 3), smooth(fixed, 3)
    count, _, height, width = fixed.shape
    dy, dx = torch.gradient(moving, dim=(2, 3))
    layers = torch.cat([moving, dx * width / 2, dy * height / 2], 1)
    theta = unmoved = torch.eye(2, 3).expand(count, 2, 3)
    x, y = affine_grid(unmoved, list(fixed.shape), align_corners=False).unbind(-1)
    target = fixed - fixed.mean((2, 3), keepdim=True)
    target = target / target.std((2, 3), keepdim=True).clamp(min=1e-3)
    for _ in range(steps):
        warped, inside = warp(layers, theta)
        value, dx, dy = warped.unbind(1)
        mask = inside.flatten(1)[..., None]
        terms = [dx * x, dx * y, dx, dy * x, dy * y, dy, value, torch.ones_like(value)]
        design = torch.stack(terms, -1).flatten(1, 2) * mask
        normal = design.mT @ design
        ridge = torch.diag_embed(1e-4 * normal.diagonal(dim1=1, dim2=2) + 1e-3)
        right = design.mT @ (target.flatten(1)[..., None] * mask)
        solution = torch.linalg.solve(normal + ridge, right)[..., 0]
        gain = solution[:, 6:7].clamp(min=1e-3)
        step = (solution[:, :6] / gain).clamp(-0.05, 0.05).view(count, 2, 3)
        theta = unmoved + (theta + step - unmoved).clamp(-0.15, 0.15)
    return theta
