"""Three lines of Python: the bundled model, and runs, judge films of any kind."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import infer
from fracture import load_model
from fracture.config import BOXED
from fracture.data.images import Source, read_grey
from fracture.evaluation.model import Model
from fracture.runs.checkpoint import PACKED
from fracture.runs.pack import pack
from tests.conftest import ROOT, Capture, run_expecting_error

POINTS = {"protocol", "sensitivity90", "youden"}


@pytest.fixture(scope="module")
def boxed() -> Model:
    return load_model()


def test_paths_arrays_images_and_contents_of_files_are_the_same_film(
    boxed: Model, films: list[str]
) -> None:
    content, grey = Path(films[0]).read_bytes(), read_grey(films[0])
    sources: list[Source] = [
        films[0],
        Path(films[0]),
        content,
        grey,
        np.array(grey),
        grey.convert("RGB"),
    ]
    first, *others = boxed.predict(sources)
    assert first.p is not None
    assert 0 < first.p < 1
    assert first.decisions.keys() == POINTS
    for other in others:
        assert other.p == pytest.approx(first.p, abs=1e-6)
        assert (other.decisions, other.marks()) == (first.decisions, first.marks())


def test_marks_and_heat_map_lie_on_the_film(boxed: Model, films: list[str]) -> None:
    (film,) = boxed.predict([films[0]])
    width, height = read_grey(films[0]).size
    heat = film.heat_map()
    assert heat.shape == (height, width)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert film.picture().size == (width, height)
    (mark, *more) = film.marks()
    assert all(other["p"] <= mark["p"] for other in more)
    left, top, right, bottom = mark["box"]
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert left - 1 <= x <= right
    assert top - 1 <= y <= bottom


def test_what_cannot_be_read_stops_nothing(boxed: Model, films: list[str]) -> None:
    Path("text.jpg").write_text("no image")
    bad, good, gone, odd = boxed.predict(["text.jpg", films[0], "gone.jpg", np.zeros((3, 3))])
    assert (bad.p, bad.decisions, bad.marks()) == (None, {}, [])
    assert bad.note == "unreadable: not an image"
    assert good.p is not None
    assert gone.note == "unreadable: No such file or directory"
    assert odd.note.startswith("unreadable: floating-point grey levels")


def test_what_is_no_radiograph_gets_its_number_with_a_caution(boxed: Model) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8)
    page = Image.new("L", (400, 500), 255)
    for line in range(20, 480, 16):
        ImageDraw.Draw(page).text((30, line), "a page of text " * 4, 0)
    for film in boxed.predict([noise, page, np.full((300, 300), 255, np.uint8)], heat=False):
        assert film.p is not None
        assert film.note == "caution: unlike the films that the model was trained on"


def test_without_heat_maps_there_are_no_marks(boxed: Model, films: list[str]) -> None:
    (film,) = boxed.predict(films[:1], heat=False)
    assert film.marks() == []
    with pytest.raises(ValueError, match="without heat maps"):
        film.heat_map()


def test_a_run_says_what_infer_says_of_it(films: list[str], capsys: Capture) -> None:
    p = [film.p for film in load_model("first").predict(films[:3], heat=False)]
    infer.main([*films[:3], "--run", "first"])
    assert [f"{one:.4f}" for one in p] == [
        line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]
    ]


def test_a_packed_run_judges_as_the_run(films: list[str]) -> None:
    pack(Path("runs/first"), Path("passed-on"))
    run, packed = (load_model(name) for name in ("first", "./passed-on"))
    pairs = zip(run.predict(films), packed.predict(films), strict=True)
    assert all(one.p == pytest.approx(two.p, abs=2e-3) for one, two in pairs)


def test_without_any_run_the_bundled_model_judges(
    films: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(films[0], tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    infer.main(["film.png"])
    said = capsys.readouterr().out
    assert said.startswith("no run in runs/ yet: using the bundled model; research use")
    infer.main(["film.png", "--run", "pretrained"])
    assert said.endswith(capsys.readouterr().out)


def test_a_damaged_or_foreign_model_is_told_in_a_line(films: list[str]) -> None:
    file = Path("odd", PACKED)
    file.parent.mkdir()

    def told() -> str:
        return run_expecting_error(infer.main, films[0], "--run", "./odd")

    assert told() == "odd/best.pt: no such file; the run did not finish an epoch"
    file.write_bytes((BOXED / PACKED).read_bytes()[:-5])
    assert told() == f"{file}: damaged, or of another program"
    save_file({"weight": np.ones(3, np.float32)}, file)
    assert told() == f"{file}: not a model of this program"
    weights = load_file(BOXED / PACKED)
    weights.popitem()
    with safe_open(BOXED / PACKED, "np") as tensors:
        save_file(weights, file, tensors.metadata())
    assert told().startswith("fracture/models/ builds a different network; undo the edit")


def test_the_page_on_python_runs_as_printed(
    films: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copy(films[0], tmp_path / "film.jpg")
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    exec("\n".join(code), {})
    assert "None unreadable: No such file or directory\n" in capsys.readouterr().out
    assert Path("heat.png").is_file()


def test_the_card_is_that_of_the_model() -> None:
    digest = hashlib.sha256((BOXED / PACKED).read_bytes()).hexdigest()
    assert digest in (BOXED / "MODEL_CARD.md").read_text()
