"""Draw the pictures of the README anew, from drawn radiographs; `make pictures` runs it.

It needs chromium and the run of `make demo`: the report is that run's, all else shows the
bundled model.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fracture import load_model

HERE = Path(__file__).parent
FILMS = Path("data/demo/FracAtlas/images")
FILM, *OTHERS = (
    FILMS / name
    for name in (
        "Fractured/IMG0000319.jpg",
        "Fractured/IMG0000142.jpg",
        "Non_fractured/IMG0000003.jpg",
    )
)
CHROMIUM = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}


def draw_film() -> None:
    """The film, and beside it the same with heat map and marks."""
    (found,) = load_model().predict([FILM])
    film, marked = Image.open(FILM).convert("RGB"), found.picture()
    pair = Image.new("RGB", (2 * film.width + 8, film.height), "white")
    pair.paste(film)
    pair.paste(marked, (film.width + 8, 0))
    pair.save(HERE / "film.jpg", quality=85)


def photograph_pages() -> None:
    """The page of app.py with films in it, and the head of the report."""
    command = [sys.executable, "-u", "app.py", "--run", "pretrained", "--port", "7891"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = next(filter(None, (re.search(r"http\S+", line) for line in server.stdout or ())))
        with sync_playwright() as driver:
            browser = driver.chromium.launch(**CHROMIUM)
            page = browser.new_page(viewport={"width": 900, "height": 1240})
            page.goto(address[0])
            chooser = page.get_by_label("Drop films here or choose them")
            chooser.set_input_files([FILM, *OTHERS])
            page.get_by_text("3 of 3 films judged").wait_for()
            save(page.screenshot(), "page.png")
            page = browser.new_page(viewport={"width": 1100, "height": 1000})
            page.goto(Path("runs/latest/test/report.html").resolve().as_uri())
            save(page.screenshot(), "report.png")
    finally:
        server.terminate()


def save(screenshot: bytes, name: str) -> None:
    """In 128 colours, a third of the bytes."""
    Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(128).save(HERE / name, optimize=True)


if __name__ == "__main__":
    draw_film()
    photograph_pages()
