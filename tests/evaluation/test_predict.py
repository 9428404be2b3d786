"""Files in, a table and heat maps out."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
from fracture.config import BOXED
from fracture.data.images import read_grey
from fracture.runs.checkpoint import PACKED
from fracture.runs.trained import load_trained
from tests.conftest import Capture, Patch, run_expecting_error
from tests.evaluation.conftest import CLASSES

NO_IMAGE = "unreadable: not an image"


def predict(capsys: Capture, *argv: str) -> list[list[str]]:
    """The printed lines: probability, decision, and file with note."""
    infer.main(["--run", "first", *argv])
    lines = capsys.readouterr().out.partition("decision        file\n")[2].splitlines()
    return [[line[:13].strip(), line[13:29].strip(), line[29:]] for line in lines]


@pytest.fixture(autouse=True)
def bad(project: Path) -> None:
    (project / "bad.jpg").write_text("no image")
    (project / "empty").mkdir(exist_ok=True)


def test_the_order(films: list[str], monkeypatch: Patch, capsys: Capture) -> None:
    """Files, folders and standard input; a bad file stops nothing, a hidden one is skipped."""
    Path("box/b").mkdir(parents=True)
    for name in ("z.jpg", "b/A.JPG", ".hidden.jpg", "c.png", "notes.txt"):
        shutil.copy("bad.jpg" if name == "c.png" else films[1], Path("box", name))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{films[2]}\nbox\n".encode())))
    lines = predict(capsys, films[0], "-")
    bad = f"box/c.png  {NO_IMAGE}"
    assert [file for *_, file in lines] == [films[0], films[2], "box/b/A.JPG", bad, "box/z.jpg"]
    assert lines[2][:2] == lines[4][:2] != lines[3][:2] == ["", ""]


REFUSED = [
    (["missing.jpg"], "'missing.jpg': no such file or folder"),
    (["empty"], "empty: no images here"),
    (["bad.jpg"], "no file could be read: bad.jpg: unreadable: not an image"),
    (
        ["bad.jpg", "--out", "x.txt"],
        "--out x.txt: must end in .csv or .json, in an existing folder",
    ),
    (["bad.jpg", "--at", "often"], "settings: "),
    (["bad.jpg", "--at", "sensitivity=2"], "settings: "),
    (["bad.jpg", "--at", "velocity=0.5"], "settings: "),
    (["--out", "x.csv"], "--out and --heatmaps need files to predict"),
    (["bad.jpg", "--run", "nobody"], "runs/nobody: no such run in /"),
]


@pytest.mark.parametrize(("argv", "said"), REFUSED)
def test_what_cannot_be_predicted_is_told_in_a_line(argv: list[str], said: str) -> None:
    assert run_expecting_error(infer.main, *argv).startswith(said)


@pytest.mark.parametrize(
    ("point", "end"),
    [
        ("protocol", "csv"), ("sensitivity90", "json"), ("youden", "csv"),
        ("0.05", "json"), ("sensitivity=0.95", "csv"),
    ],
)  # fmt: skip
def test_tables(films: list[str], capsys: Capture, point: str, end: str) -> None:
    """A file holds what is printed: the test's probabilities, whatever operating point decides."""
    *lines, _ = predict(capsys, *films[::3], "bad.jpg", "--at", point, "--out", f"x.{end}")
    with Path(f"x.{end}").open() as file, Path("runs/first/test/predictions.csv").open() as test:
        *good, bad = json.load(file) if end == "json" else csv.DictReader(file)
        tested = [float(row["p_fractured"]) for row in csv.DictReader(test)]
    assert (bad["p_fractured"] or "", bad["decision"], bad["note"]) == ("", "", NO_IMAGE)
    p = [float(row["p_fractured"]) for row in good]
    assert p == pytest.approx(tested[::3], abs=1e-6)
    classifier = load_trained(infer.arguments(["--run", "first"])[0], "float32").classifier
    classifier.add_point(point)
    decided = [CLASSES[one < classifier.thresholds[point]] for one in p]
    assert decided == [row["decision"] for row in good]
    assert lines == [[f"{p[i]:.4f}", decided[i], film] for i, film in enumerate(films[::3])]


def test_turned_and_16_bit_films_are_what_they_show(drawn: Path, capsys: Capture) -> None:
    """The drawn film with an EXIF orientation, its upright pixels in 16 bits, and heat maps."""
    turned = next(f for f in drawn.glob("images/*/*") if Image.open(f).getexif().get(0x0112) == 6)
    grey = read_grey(turned.read_bytes())
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save("16.png")
    predict(capsys, str(turned), "bad.jpg", "16.png", "--heatmaps", "maps", "--out", "p.json")
    p, _, same = (row["p_fractured"] for row in json.loads(Path("p.json").read_text()))
    assert same == pytest.approx(p, abs=1e-6)
    maps = {path.name: np.asarray(Image.open(path)) for path in sorted(Path("maps").iterdir())}
    assert [*maps] == [f"0001-{turned.stem}.png", "0002-16.png"]
    first, last = maps.values()
    assert first.shape == last.shape == (grey.height, grey.width, 3)
    assert abs(first.astype(int) - last).max() <= 1


def test_the_bundled_model_judges_and_marks_a_film(films: list[str], capsys: Capture) -> None:
    infer.main(["--run", "pretrained", films[0], "--at", "sensitivity=0.95"])
    out = capsys.readouterr().out
    assert "run pretrained, epoch 10: efficientnet-lite0, imagenet weights" in out
    assert "Fractured if p >= 0.0402 (operating point sensitivity=0.95)" in out
    assert (BOXED / PACKED).stat().st_size < 8e6
