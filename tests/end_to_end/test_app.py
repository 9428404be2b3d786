"""The page in a headless Chromium: films in, answers out, nothing else."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from fracture import load_model
from fracture.data.images import read_grey
from fracture.evaluation.page import MAX_BYTES, Judge, percent
from tests.conftest import ROOT, Patch, files_in, run_expecting_error
from tests.data.conftest import encoded
from tests.data.test_dicom import REFUSED, dicom

CHROMIUM = "/usr/bin/chromium"
if not Path(CHROMIUM).exists():
    pytest.skip("needs Debian's chromium", allow_module_level=True)
pytest.importorskip("gradio")
browsers = pytest.importorskip("playwright.sync_api")
expect = browsers.expect
expect.set_options(timeout=60_000)

# app.py, with a hook that notes where Python connects to.
DRIVER = """
import sys
spied, asked = ("socket.connect", "socket.getaddrinfo", "socket.sendto"), open(sys.argv[1], "w", 1)
sys.addaudithook(lambda event, given: event in spied and print(given, file=asked))
import app
app.run_script(lambda: app.main(sys.argv[2:]))
"""
POINTS = ("protocol", "sensitivity90", "youden")
DROP = """size => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([new Uint8Array(size)], "huge.png"));
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of the bundled model, and a browser."""
    home = tmp_path_factory.mktemp("home")  # current and temporary folder, too
    asked = home.with_name("asked")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-uc", DRIVER, str(asked), "--port", port, "--run", "pretrained"]
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9"}  # nobody is there
    with subprocess.Popen(command, cwd=home, env=env, stdout=-1, text=True) as process:
        address = next(line for line in process.stdout or () if "http" in line).split()[4]
        with browsers.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            yield SimpleNamespace(pid=process.pid, **locals())
        process.terminate()
    assert process.returncode == 143


@pytest.fixture
def visit(served: Any) -> Iterator[Callable[..., Any]]:
    """Open the page as a new user, whose browser must not complain or ask anybody else."""
    said: list[object] = []
    asked: list[str] = []

    def new_page(**options: Any) -> Any:
        page = served.browser.new_context(**options).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(error))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served.address)
        expect(page.get_by_label("Drop films here or choose them")).to_be_enabled()
        return page

    yield new_page
    for context in served.browser.contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith((served.address, "data:"))} == set()


@pytest.fixture(scope="module")
def drawings(drawn: Path) -> list[Path]:
    return sorted((drawn / "images/Fractured").iterdir())


def send(page: Any, **files: bytes) -> None:
    known = [{"name": name, "mimeType": "", "buffer": content} for name, content in files.items()]
    page.get_by_label("Drop films here or choose them").set_input_files(known)
    expect(status(page)).to_have_text(re.compile("^(?!Judging)."))


def status(page: Any) -> Any:
    return page.locator("#page").get_by_role("status")  # gradio has one of its own


def test_a_film_has_its_picture_decision_and_misses(visit: Callable, drawings: list[Path]) -> None:
    model = load_model()
    judged = zip(drawings, model.predict(drawings[:8]), strict=False)
    path, film = next(pair for pair in judged if len({*pair[1].decisions.values()}) == 2)
    page = visit()
    send(page, **{path.name: path.read_bytes()})
    expect(page.get_by_text(f"{percent(film.p or 0)} probability of fractured")).to_be_visible()
    expect(page.get_by_role("img", name=f"The film {path.name}")).to_be_visible()
    scale = page.get_by_role("img", name="Scale from 0 to 100 %").get_attribute("aria-label")
    for point in POINTS:  # with the keyboard: the arrow moves on to the next one
        start, found = model.classifier.thresholds[point], (model.classifier.tested or {})[point]
        expect(page.get_by_role("radio", name=point)).to_be_checked()
        flagged = film.decisions[point] == "Fractured"
        says = "Flagged: fractured" if flagged else "Not flagged: non fractured"
        expect(page.locator(".decision").filter(visible=True)).to_have_text(says)
        of_100 = round(100 * found["sensitivity"]["value"])
        misses = f"from {percent(start)} on. It finds {of_100} of 100 fractures"
        expect(page.get_by_text(misses)).to_be_visible()
        marks = page.locator(".stack rect").filter(visible=True)
        assert marks.count() == len(film.marks()) * flagged
        assert f"{point} from {percent(start)}" in scale
        page.get_by_role("radio", name=point).press("ArrowDown")
    expect(page.locator(".heat")).to_have_css("opacity", "0.5")
    page.get_by_role("slider", name="Heat map").press("End")
    expect(page.locator(".heat")).to_have_css("opacity", "1")


def test_of_many_files_each_bad_one_has_a_message(visit: Callable, drawings: list[Path]) -> None:
    film, content = read_grey(drawings[0]), drawings[0].read_bytes()
    deep = Image.fromarray(np.asarray(film).astype(np.uint16) << 4)
    good = {
        "film <b>.jpg": content,
        "12 bits.png": encoded(deep, "PNG"),
        "cmyk.jpg": encoded(film.convert("CMYK"), "JPEG"),
        "chest.dcm": dicom(BodyPartExamined="CHEST"),
        "really a png.jpg": encoded(film, "PNG"),
    }
    bad = {
        "an empty file": b"",
        "truncated": content[:9000],
        "2 frames": encoded(film, "GIF", save_all=True, append_images=[film.rotate(9)]),
        "not an image": b"%PDF-1.7\n1 0 obj << /Encrypt 2 0 R >>",
        "no image in it": REFUSED["no image in it"],
        "2 frames in MONOCHROME2": REFUSED["2 frames in MONOCHROME2"],
        "100000000 pixels": encoded(Image.new("1", (10_001, 10_000)), "PNG"),
    }
    page = visit()
    send(page, **good, **bad)
    expect(status(page)).to_have_text("5 of 12 films judged.")
    rows = [row.split("\t") for row in page.locator("tbody tr").all_inner_texts()]
    assert [row[0].strip() for row in rows] == [*good, *bad]
    assert not any("unreadable" in row[3] for row in rows[:5])
    assert rows[3][3].startswith("caution: CHEST, not a limb")
    for name, p, decision, note in rows[5:]:
        assert (p, decision) == ("", "")
        assert re.match(f"unreadable: .*{name.strip()}", note)
    page.get_by_role("radio", name="film <b>.jpg").press("ArrowDown")
    expect(page.get_by_role("heading", level=2)).to_have_text("12 bits.png")
    with page.expect_download() as download:
        page.get_by_role("link", name="Table as CSV").click()
    table = download.value.path().read_text().splitlines()
    assert table[0] == f"file,p_fractured,{','.join(f'decision_{point}' for point in POINTS)},note"
    (first,) = load_model().predict([content])
    assert table[1] == f"film <b>.jpg,{first.p:.4f},{','.join(first.decisions.values())},"
    assert len(table) == 13


def test_a_file_of_more_than_50_mb_is_refused_here_and_there(visit: Callable) -> None:
    page = visit()
    page.evaluate(DROP, MAX_BYTES + 1)  # beside the field
    expect(status(page)).to_have_text("huge.png: unreadable: more than 50 MB")
    page.get_by_role("button", name="Remove the films").click()
    expect(page.get_by_role("heading", level=2)).to_have_count(0)
    answer = Judge(load_model()).answer("huge.png", 1, "," + "AAAA" * (MAX_BYTES // 3 + 1))
    assert "more than 50 MB" in answer["message"]


def test_users_at_once_get_their_own_answers(visit: Callable, drawings: list[Path]) -> None:
    phone = visit(viewport={"width": 390, "height": 844}, color_scheme="dark")
    users = {visit(): drawings[:3], phone: drawings[3:6]}
    for page, films in users.items():
        page.get_by_label("Drop films here").set_input_files([*map(str, films)])
    for page, films in users.items():
        expect(status(page)).to_have_text("3 of 3 films judged.")
        rows = [row.split("\t")[:2] for row in page.locator("tbody tr").all_inner_texts()]
        found = [percent(film.p or 0) for film in load_model().predict(films)]
        assert [p for _, p in rows] == found
        assert [name.strip() for name, _ in rows] == [film.name for film in films]
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    phone.keyboard.press("End")
    expect(phone.get_by_text("Research use only, not a medical device")).to_be_in_viewport()
    expect(phone.locator("#page")).to_have_css("color-scheme", "dark")


def test_films_stay_in_memory_and_on_this_machine(
    visit: Callable, served: Any, drawings: list[Path]
) -> None:
    before, page = files_in(served.home), visit()
    send(page, good=drawings[0].read_bytes(), bad=b"no image")
    file = {"name": "film.jpg", "mimeType": "image/jpeg", "buffer": b"text"}
    refused = page.request.post(f"{served.address}gradio_api/upload", multipart={"files": file})
    assert refused.status == 413
    assert files_in(served.home) == before
    links = psutil.Process(served.pid).net_connections()
    assert {link.laddr.ip for link in links if link.status == "LISTEN"} == {"127.0.0.1"}
    asked = served.asked.read_text().splitlines()
    assert asked == [line for line in asked if "127.0.0.1" in line] != []


def test_without_gradio_a_line_says_what_to_do(monkeypatch: Patch) -> None:
    import app

    monkeypatch.setattr(app, "find_spec", lambda _: None)
    line = "the page needs gradio: pip install -r requirements-app.txt"
    assert run_expecting_error(app.main) == line
    assert run_expecting_error(app.main, "--port", "70000").startswith("--port 70000")
