"""Write a trained run as one ONNX file, for programs without Python or PyTorch.

    python export.py                            # the latest run, as model.onnx
    python export.py --run NAME --out FILE.onnx

The file holds the preprocessing, the network, the calibration and the map of
where fractures are; its metadata say classes, thresholds and hashes. It needs
pip install -r requirements-onnx.txt; docs/inference.md says how to use it.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import Namespace

from fracture.cli import InputError, run_script
from fracture.config import ExportConfig
from fracture.settings import parse_settings, settings_parser

CARD = """\
Fractures on radiographs of limbs. Research use only, not a medical device.
film: (N, H, W) uint8, upright films of one size in grey levels, bones bright.
p: (N,) calibrated probability of {positive}; what reaches a threshold counts as {positive}.
map: (N, h, w) probabilities on the square that the network sees ({fit}, {image_size} pixels).
"""


def arguments(argv: Sequence[str] | None = None) -> tuple[ExportConfig, Namespace]:
    parser = settings_parser(ExportConfig, __doc__)
    parser.add_argument(
        "--out", metavar="FILE", default="model.onnx", help="to write [%(default)s]"
    )
    config, options = parse_settings(ExportConfig, parser, argv)
    out = Path(options.out)
    if out.suffix != ".onnx" or not out.parent.is_dir():
        raise InputError(f"--out {out}: must end in .onnx, in an existing folder")
    if missing := [name for name in ("onnx", "onnxscript") if not find_spec(name)]:
        hint = "pip install -r requirements-onnx.txt"
        raise InputError(f"not installed: {', '.join(missing)}; {hint}")
    return config, options


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before torch is imported

from fracture.atomic import atomic_write
from fracture.models.film_network import FilmNetwork, to_onnx
from fracture.runs.trained import TrainedRun, load_trained


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    run = load_trained(config, "float32")
    content = to_onnx(FilmNetwork(run.classifier), metadata(run))
    with atomic_write(Path(options.out)) as new:
        new.write_bytes(content)
    size = f"{len(content) / 1e6:.1f} MB"
    print(f"{options.out}: {size}; film (N, H, W) uint8 -> p (N,), map (N, h, w)")


def metadata(run: TrainedRun) -> dict[str, str]:
    """What to know about a model, to travel in its file: text, or JSON."""
    classifier, recipe = run.classifier, run.classifier.spec.cache_key()
    card = CARD.format(positive=classifier.classes[0], **recipe)
    values = run.metadata() | {"card": card, "recipe": recipe, "classes": classifier.classes}
    values |= {"thresholds": classifier.thresholds, "tested": classifier.tested}
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}


if __name__ == "__main__":
    run_script(main)
