"""The report is one page that needs nothing else and hides nothing."""

import re
from dataclasses import replace
from pathlib import Path

from PIL import Image

import infer
from fracture.data.manifest import read_manifest
from fracture.evaluation.report import image_flow, write_report
from fracture.evaluation.test_set import TITLES, as_text
from fracture.runs.trained import load_trained
from tests.evaluation.conftest import JUDGE, film_like, image_set

SPLIT, PAGE = Path("data/split"), Path("runs/first/test/report.html")


def test_the_page_is_whole_and_has_every_metric_with_its_interval(results: dict) -> None:
    page = PAGE.read_text()
    addresses = re.findall(r"""\b(?:src|href|srcset)\s*=\s*["']?([^"'> ]*)""", page)
    assert {address[:5] for address in addresses} == {"data:"}
    assert not re.search(r"url\(|@import|<script", page)
    for name, title in TITLES.items():
        assert f"<td>{title}</td><td>{as_text(results[name])}</td>" in page


def test_the_images_add_up_from_the_files_found(project: Path) -> None:
    found, *parts = (flow := image_flow(read_manifest(project / SPLIT)[0])).values()
    assert (len(flow), found.total()) == (7, 80)  # with three reasons to exclude
    assert {name: sum(part[name] for part in parts) for name in found} == found
    for title, part in flow.items():
        cells = (title, part.total(), part["Fractured"], part["Non_fractured"])
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in PAGE.read_text()


def test_odd_names_are_escaped_and_random_weights_announced(results: dict, tmp_path: Path) -> None:
    run = load_trained(infer.arguments(["--run", "first"])[0], "float32")
    films = {"Worst misses": [('"<script>\udcff', 0.1, Image.new("RGB", (4, 4)))]}
    images, random = image_set(*film_like(50, seed=7)), results | {"weights": "none"}
    write_report(tmp_path, replace(run, classifier=JUDGE), images, random, films, SPLIT)
    page = (tmp_path / "report.html").read_text()
    assert page.count("&lt;script&gt;\\udcff") == 2
    assert ("<script" in page, "RANDOM weights" in page) == (False, True)
