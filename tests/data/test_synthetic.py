"""The drawn stand-in has FracAtlas' layout and defects, and is always the same."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fracture.data.images import scan_image
from fracture.data.synthetic import draw_data_set
from tests.conftest import files_in


def test_layout_and_defects_are_fracatlas_own(drawn: Path) -> None:
    hurt, sound = (sorted((drawn / "images" / c).iterdir()) for c in ("Fractured", "Non_fractured"))
    rows = {row["image_id"]: row for row in csv.DictReader((drawn / "dataset.csv").open())}
    assert (len(hurt), len(sound), len(rows)) == (22, 58, 80)  # 28 %
    for row, path in ((rows[path.name], path) for path in (*hurt, *sound)):
        assert (row["fractured"] == "1") == (int(row["fracture_count"]) > 0) == (path in hurt)
    images = {path: Image.open(path) for path in (*hurt, *sound)}
    assert {image.size for image in images.values()} == {(373, 454), (454, 373), (2304, 2880)}
    assert [path for path, image in images.items() if image.getexif()] == [sound[-3]]
    assert [path for path in images if "truncated" in scan_image(path).error] == sound[-5:-3]
    twins = [(hurt[0], hurt[-1]), (sound[0], sound[-1]), (sound[1], sound[-2]), (hurt[1], hurt[-2])]
    assert [a.read_bytes() == b.read_bytes() for a, b in twins] == [True, True, False, False]
    pixels = {path: np.asarray(Image.open(path).convert("L"), float) for path in sum(twins, ())}
    gaps = [np.abs(pixels[a] - pixels[b]).mean() for a, b in twins]
    assert (gaps[:3], 0 < gaps[3] < 2) == ([0, 0, 0], True)


def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        draw_data_set(tmp_path / name, count=20, seed=3)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")
