"""Heat maps: they are the prediction taken apart, lie where they belong, and are scored."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import logit

import infer
import train
from fracture.config import Fit
from fracture.data import boxes
from fracture.data.images import ImageFiles, load_image
from fracture.evaluation import cam, pointing
from fracture.features.extract import Compute
from fracture.runs.trained import load_trained
from tests.conftest import LITE, run_expecting_error

CPU = Compute(torch.device("cpu"), "float32", 0)


def write_boxes(root: Path, content: object) -> None:
    (file := root / boxes.FILE).parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def coco(*names: str, width: int = 2000) -> dict[str, list]:
    """A box in the second quarter from the left and from the top of each image."""
    images = [{"id": i, "file_name": i, "width": width, "height": 1000} for i in names]
    boxes = [{"image_id": i, "bbox": [500, 250, 500, 250]} for i in names]
    return {"images": images, "annotations": boxes}


def test_a_heat_map_takes_the_log_odds_apart_alone_as_in_a_batch(films: list[str]) -> None:
    classifier = load_trained(infer.arguments(["--run", "first"])[0], "float32").classifier
    backbone = classifier.spec.build(torch.device("cpu"))
    images = [load_image(Path(film).read_bytes(), 224, "squash") for film in films[:4]]
    batch = torch.from_numpy(np.stack(images))
    with torch.inference_mode():
        features, maps, odd = classifier.explain(backbone, batch)
        alone = torch.cat([classifier.explain(backbone, one[None])[1] for one in batch])
        log_odds = classifier.log_odds(features)
    np.testing.assert_allclose(maps.mean((1, 2)), log_odds / classifier.temperature, atol=1e-4)
    torch.testing.assert_close(alone, maps, atol=1e-3, rtol=1e-4)
    assert not odd.any()  # a frozen backbone does not know


@pytest.mark.parametrize("average", ["false", "true"])
def test_files_are_judged_in_all_views_as_the_test_set_is(films: list[str], average: str) -> None:
    run = ["--run", f"views-{average}"]
    views = ["--views", "[squash-100-mirror, letterbox-104]", "--average_views", average]
    train.main([*LITE, *run, *views, "--image_size", "64", "--epochs", "2"])
    infer.main(run)
    with Path("runs", run[1], "test/predictions.csv").open() as table:
        tested = [float(row["p_fractured"]) for row in csv.DictReader(table)]
    classifier = load_trained(infer.arguments(run)[0], "float32").classifier
    Path("bad.jpg").write_text("no image")
    files = partial(ImageFiles, [Path("bad.jpg"), *map(Path, films)])
    (none, *p), (_, *heat), _, (reason, *_) = zip(*cam.judge(classifier, files, CPU), strict=True)
    assert (none, reason) == (None, "not an image")
    assert p == pytest.approx(tested, abs=1e-6)
    assert [logit(one) for one in p] == pytest.approx([one.mean() for one in heat])


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("size", [(300, 500), (500, 300), (400, 400)])
@pytest.mark.parametrize("corner", ["upper left", "upper right", "lower left", "lower right"])
def test_a_hot_corner_stays_there(fit: Fit, size: tuple, corner: str, tmp_path: Path) -> None:
    """The backbone's view of a film with one bright corner, as a heat map over that film."""
    left, top = (size[0] - 100) * ("right" in corner), (size[1] - 100) * ("lower" in corner)
    grey = np.zeros(size[::-1], np.uint8)
    grey[top : top + 100, left : left + 100] = 255
    Image.fromarray(grey).save(film := tmp_path / "film.png")
    view = load_image(film.read_bytes(), 224, fit)
    heat = cam.in_frame(view.reshape(14, 16, 14, 16).mean((1, 3)), size, fit)
    assert ((heat > 128) != (grey > 0)).mean() < 0.02


def test_an_overlay_colours_the_film_where_it_is_hot() -> None:
    film, hot = Image.fromarray(np.full((10, 12), 99, np.uint8)), np.arange(12) >= 6
    picture = cam.overlay(film, np.where(hot, 50, -50) * np.ones((10, 1)), "squash")
    assert ((np.asarray(picture) != 99).any(2) == np.tile(hot, (10, 1))).all()


def test_boxes_are_shares_of_the_original_film(tmp_path: Path) -> None:
    write_boxes(tmp_path, coco("a.jpg"))
    found = boxes.read_boxes(tmp_path)
    assert str(found) == str(boxes.read_boxes(Path(f"{tmp_path}.zip")))
    (box,) = found["a.jpg"].boxes
    assert box.tolist() == [[0.25, 0.25], [0.5, 0.5]]
    mask = pointing.inside([box, np.array([(0, 0), (0.1, 1)])], (8, 16))
    assert (mask[2:4, 4:8].sum(), mask[:, :2].sum(), mask.sum()) == (8, 16, 24)


@pytest.mark.parametrize("content", [[], coco("a") | {"images": []}, coco("a", width=0)])
def test_a_damaged_file_of_boxes_is_told_in_a_line(content: object, tmp_path: Path) -> None:
    write_boxes(tmp_path, content)
    assert f"{boxes.FILE}: damaged (" in run_expecting_error(lambda _: boxes.read_boxes(tmp_path))


def test_localisation_is_scored_beside_what_chance_gives() -> None:
    heat = np.full((10, 10), logit(0.1))
    heat[1, 1] = logit(0.9)
    boxes = [np.array([(0, 0), (0.2, 0.2)]), np.array([(0.8, 0.8), (1, 1)])]
    marks: dict = {"group": "1", "boxes": 1, "found": [], "false": [0.9]}
    films = [marks | pointing.score_heat(heat, [box]) for box in boxes]
    game, energy, _ = (pointing.localisation(films) or {}).values()
    assert [game[who]["value"] for who in ("map", "centred blob")] == [0.5, 0]
    assert game["uniform"]["value"] == energy["uniform"]["value"] == pytest.approx(0.04)
    assert energy["map"]["value"] == pytest.approx((1.2 + 0.4) / 10.8 / 2)
    middle = np.array([(0.3, 0.3), (0.7, 0.7)])
    central = pointing.score_heat(heat, [middle])["energy"]
    assert energy["centred blob"]["value"] < 0.04 < 0.3 < central["centred blob"]
    assert pointing.localisation([marks | {"boxes": 0}]) is None


def test_the_worst_cases_come_first_and_are_errors() -> None:
    truth = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)
    p = np.array([0.4, 0.1, 0.5, 0.5, 0.9, 0.49, 0.2, 0.7])
    assert [*pointing.worst_cases(truth, p, 2).values()] == [[2], [1, 6], [4, 7]]
    assert [*pointing.worst_cases(truth, p).values()] == [[2], [1, 6, 0], [4, 7, 3]]


def test_fractures_are_scored_on_unchanged_films(films: list[str], tmp_path: Path) -> None:
    fractured = [Path(film) for film in films if "/Fractured/" in film]
    Path("data/split/config.yaml").write_text(f"data_root: {tmp_path}\n")
    write_boxes(tmp_path, coco(*(film.name for film in fractured), "unknown.jpg"))
    infer.main(["--run", "first"])
    results = json.loads(Path("runs/first/test/metrics.json").read_text())
    uniform = results["localisation"]["pointing_game"]["uniform"]
    assert (uniform["n"], uniform["value"]) == (len(fractured), pytest.approx(1 / 16, abs=0.002))
    fractured[0].write_bytes(b"another film")
    assert (
        run_expecting_error(infer.main, "--run", "first")
        == f"{fractured[0]}: changed since the split was made"
    )
