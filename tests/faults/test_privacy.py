"""What leaves this machine says nothing of it, and nothing is sent that nobody asked to send."""

import os
import shutil
from pathlib import Path

from fracture.models.weights import find_weights
from tests.conftest import LITE, ROOT, Patch
from tests.faults.conftest import on_another_machine

KEY = "0123456789abcdef0123456789abcdef01234567"
HOST, USER = "h0st-n4me", "u5er-n4me"
DRIVER = """
import sys

spied, asked = ("socket.connect", "socket.getaddrinfo", "socket.sendto"), open("addresses", "w")
sys.addaudithook(lambda event, given: event in spied and print(repr(given[-1]), file=asked))
import infer, split_dataset, train

for script in (split_dataset, train, infer):
    script.main(sys.argv[1:])
"""


def test_a_run_shares_nothing_of_the_machine_and_asks_for_no_address(
    drawn: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """With a key, absolute paths and wandb offline; a hook notes where Python connects to."""
    (home := tmp_path / USER).mkdir()
    monkeypatch.chdir(home)
    shutil.copy(find_weights(LITE[1], "imagenet", 0).path or "", "own.pth")
    variables = {"USER": USER, "LOGNAME": USER, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    variables |= {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    settings: dict[str, object] = {
        "data_root": drawn,
        "split_dir": home / "split",
        "weights": home / "own.pth",
    }
    settings |= {"backbone": LITE[1], "epochs": 2, "image_size": 96}
    (home / "own.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    command = ["-c", DRIVER, "--config", str(home / "own.yaml")]
    done = on_another_machine(f"echo {HOST} > /proc/sys/kernel/hostname", *command, **variables)
    assert done.returncode == 0, done.stderr
    run = (home / "runs/latest").resolve()
    files = [*run.glob("*.pt"), run / "history.jsonl", *run.glob("test/**/*.*")]
    names = {"best.pt", "last.pt", "report.html", "predictions.csv", "metrics.json", "roc.png"}
    assert names <= {file.name for file in files}
    for file in files:  # checkpoints too are not compressed
        for secret in (str(home), str(drawn), str(ROOT), USER, HOST, KEY):
            assert os.fsencode(secret) not in file.read_bytes(), f"{secret} is in {file.name}"
    assert USER.encode() in (run / "config.yaml").read_bytes()  # or this test would find nothing
    # Except the socket of wandb's own process on this machine.
    asked = (home / "addresses").read_text().splitlines()
    assert [address for address in asked if not address.startswith("'/")] == []
