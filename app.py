"""A page in the browser: drop films, see what a model says of them. Research use only.

    pip install -r requirements-app.txt
    python app.py                   # the latest run; without one, the bundled model
    python app.py --run NAME --port 8000

It is for this machine alone; --host 0.0.0.0 lets others in, without any password. Films
are judged in memory: nothing is written to the disk, and nothing is sent anywhere else.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from jsonargparse import Namespace

from fracture.cli import InputError, run_script
from fracture.config import PageConfig
from fracture.settings import parse_settings, settings_parser


def arguments(argv: Sequence[str] | None = None) -> tuple[PageConfig, Namespace]:
    parser = settings_parser(PageConfig, __doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on [%(default)s, this machine]")
    add("--port", type=int, default=7860, help="its port [%(default)s]")
    config, options = parse_settings(PageConfig, parser, argv)
    if not 1 <= options.port <= 65535:
        raise InputError(f"--port {options.port}: allowed: 1 to 65535")
    if find_spec("gradio") is None:
        raise InputError("the page needs gradio: pip install -r requirements-app.txt")
    return config, options


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before torch is imported

import gradio

from fracture.evaluation.model import Model
from fracture.evaluation.page import Judge
from fracture.features.extract import pick_compute
from fracture.runs.trained import load_trained


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    compute = replace(pick_compute(config), workers=0)  # a film at a time needs no processes
    run = load_trained(config, compute.precision)
    page = build(Judge(Model(run.classifier, compute)))
    os.environ["no_proxy"] = "*"  # gradio asks itself whether it runs
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    quiet: dict[str, Any] = {"share": False, "footer_links": [], "quiet": True}
    quiet["max_file_size"] = 0  # closes gradio's own upload, which would fill a folder
    where = {"server_name": options.host, "server_port": options.port}
    try:
        _, address, _ = page.launch(**where, **quiet, theme=theme, prevent_thread_lock=True)
    except OSError as error:
        raise InputError(f"cannot listen on {options.host}, port {options.port}") from error
    print(f"the page is at {address} until Ctrl-C; research use only, not a medical device")
    while True:
        time.sleep(1)


def build(judge: Judge) -> gradio.Blocks:
    """The page: one component with its own HTML. Its films come as data and go as data.

    gradio's own components for files would keep uploads and answers in a folder.
    """

    def answer(sent: list) -> dict[str, Any]:
        return judge.answer(*sent)

    with gradio.Blocks(title="Fracture classifier", analytics_enabled=False) as page:
        own: dict[str, Any] = {"js_on_load": judge.script(), "server_functions": [answer]}
        gradio.HTML(judge.page(), apply_default_css=False, **own)
    return page


if __name__ == "__main__":
    run_script(main)
