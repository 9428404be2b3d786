"""Pack a run's best epoch into one small file to pass on.

    python -m fracture.runs.pack RUN FOLDER

FOLDER gets model.safetensors: the weights in half precision and, as plain text
in its header, all else that infer.py needs, and what the run's test found at
each operating point. FOLDER is then a run like any other; when it has been
tested too, infer.py --compare RUN FOLDER shows what the halving cost.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import save

from fracture.atomic import atomic_write
from fracture.cli import run_script
from fracture.runs.checkpoint import PACKED, load_best
from fracture.runs.find import find_run


def pack(run: Path, folder: Path) -> None:
    """Write the packed run into a folder, which is made if it is not there.

    Raises:
        InputError: the run has no best epoch.
    """
    content = load_best(run)
    weights = {
        name: (weight.half() if weight.is_floating_point() else weight).contiguous()
        for name, weight in content.pop("head").items()
    }
    content["settings"]["run"] = folder.name
    if (metrics := run / "test" / "metrics.json").is_file():
        content["tested"] = json.loads(metrics.read_text())["operating_points"]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / PACKED) as new:
        new.write_bytes(save(weights, {"checkpoint": json.dumps(content)}))
        print(f"{folder / PACKED}: {new.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(lambda: pack(find_run(sys.argv[1]), Path(sys.argv[2])))
