"""A classifier as one network from films of any size, to export: preprocessing to calibration."""

from typing import Any

import PIL
import torch
from torch import nn
from torch.nn.functional import pad

from fracture.config import Fit
from fracture.models.classifier import Classifier

FRACTION_BITS = 22  # of Pillow's weights, which are whole numbers
TALL_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


class FilmNetwork(nn.Module):
    """Films to what `Model.predict` says of them, without leaving torch.

    Args:
        classifier: from `load_classifier`, in float32.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.head = classifier, classifier.head
        device = torch.device("cpu")
        self.networks = nn.ModuleList(view.build(device) for view in classifier.spec.views)

    def forward(self, film: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W) uint8 films to (N,) and (N, h, w) probabilities: of the film, and its map."""
        spec = self.classifier.spec
        images = [to_square(film, view.image_size, view.fit) for view in spec.views]
        features, heat, _ = self.classifier.explain(self.networks[0], images[0])
        others = [net(image) for net, image in zip(self.networks[1:], images[1:], strict=True)]
        p, heat = self.classifier.conclude(spec.merge([features, *others]), heat)
        return p.float(), heat.sigmoid().float()


def to_square(films: torch.Tensor, size: int, fit: Fit) -> torch.Tensor:
    """(N, H, W) uint8 films to (N, size, size), with `load_image`'s very grey levels.

    Pillow resizes one axis, rounds, and resizes the other. It begins with the width; since version
    13 with the height if that shrinks by more than twice as many pixels. The installed version
    counts, as it does for `load_image`.
    """
    height, width = films.shape[1:]
    long: Any = torch.sym_max(height, width)  # Any: a number, and in an export a symbol
    short = height + width - long
    sides = torch.stack([torch.full((), side, dtype=torch.float64) for side in (height, width)])
    inner = torch.full_like(sides, size)
    reach = (long + size - 1) // size
    if fit == "letterbox":
        inner = (sides / sides.flip(0) * size).round().clamp(max=size)
        least = torch.sym_max(1, short * size // long)  # of `inner`
        reach = torch.sym_max(reach, (short + least - 1) // least)
    shrinks = sides - inner
    is_tall = (shrinks[0] > (2 * shrinks[1]).clamp(min=0)) & TALL_FIRST
    # Padded to a square it can be turned or not: a graph has no "if" as cheap as that.
    rows = pad(films, (0, long - width, 0, long - height))
    rows = torch.where(is_tall, rows, rows.mT)
    first = torch.where(is_tall, 0, 1)
    for axis in (first, 1 - first):
        rows = _resize_rows(rows, sides[axis], inner[axis], 2 * reach + 1, size).mT
    return torch.where(is_tall, rows, rows.mT)


def _resize_rows(
    films: torch.Tensor, rows: torch.Tensor, inner: torch.Tensor, taps: int, size: int
) -> torch.Tensor:
    """Pillow's BILINEAR: each new row is a mean of old ones, under a triangle.

    Pillow's order of operations is kept (its Resample.c), so that the same sums are rounded.

    Args:
        films: (N, H, W) uint8, of which the first `rows` rows count.
        rows: of the film.
        inner: how many rows it becomes, in the middle of black ones.
        taps: old rows that a triangle may cover.
        size: rows with the black ones.

    Returns:
        (N, size, W) uint8.
    """
    scale = rows / inner.clamp(min=1)
    reach = scale.clamp(min=1)
    place = torch.arange(size, dtype=torch.float64) - ((size - inner) / 2).round()
    centre = (place + 0.5) * scale
    first = (centre - reach + 0.5).clamp(min=0).floor()
    near = first + torch.arange(taps, dtype=torch.float64)[:, None]
    weights = (1 - ((near - centre + 0.5) * (1 / reach)).abs()).clamp(min=0)
    weights = weights * ((near < rows) & (place >= 0) & (place < inner))
    weights = weights / weights.sum(0).clamp(min=0.1)  # of a black row it is 0
    weights = (weights * 2**FRACTION_BITS + 0.5).int()
    picked = films.index_select(1, torch.minimum(near, rows - 1).long().flatten())
    parts = picked.unflatten(1, (taps, size)).int() * weights[..., None]
    total = parts.sum(1, dtype=torch.int32) + 2 ** (FRACTION_BITS - 1)
    return (total.double() / 2**FRACTION_BITS).to(torch.uint8)


def to_onnx(network: FilmNetwork, metadata: dict[str, str]) -> bytes:
    """The content of an ONNX file: `film` in, `p` and `map` out."""
    from onnx_ir.passes import common

    sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(("n", "height", "width"))}
    options: Any = {"dynamic_shapes": (sizes,), "dynamo": True, "verbose": False}
    options |= {"input_names": ["film"], "output_names": ["p", "map"]}
    with torch.inference_mode():
        example = torch.zeros(2, 400, 300, dtype=torch.uint8)
        program = torch.onnx.export(network.eval(), (example,), **options)
    assert program is not None
    # Torch writes the paths of this machine's files into every node.
    common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()
