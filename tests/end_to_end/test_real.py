"""FracAtlas itself, where it is at hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import split_dataset
from fracture.data.manifest import read_manifest
from tests.conftest import slow


@slow
def test_the_split_of_fracatlas(real: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    split_dataset.main(["--data_root", str(real)])
    split_dataset.main(["--check"])
    rows, _ = read_manifest(tmp_path / "data/split")
    reasons = Counter(r.reason.split()[0].strip(":") for r in rows if r.split == "excluded")
    assert reasons == {"undecodable": 59, "copy": 79, "contradictory": 9}
    kept = [row for row in rows if row.split != "excluded"]
    assert (len(rows), len(kept)) == (4083, 3936)
    assert len({(r.group, r.split) for r in kept}) == len({r.group for r in kept}) < len(kept)
