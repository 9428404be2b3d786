"""The edits that docs/architecture.md shows: each trains, is interrupted, resumes and is tested."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LITE, ROOT, forget_the_project, fork

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
LOSS, SGD, HEAD, BACKBONE = DIFFS
ADAMW = re.sub(r"SGD\(.*\)", "AdamW(head.parameters(), lr=config.lr, weight_decay=0.05)", SGD)
RESNET = ("--backbone", "resnet18", "--weights", "none", "--image_size", "32")
NAMES = ("loss", "SGD", "AdamW", "MLP head", "resnet18")


def run_copy(folder: Path, arguments: list[str]) -> None:
    """With the copy's modules: train, be interrupted in epoch 3, resume; train whole; test."""
    forget_the_project()
    sys.path.insert(0, str(folder))
    import infer
    import train

    begun, train_epoch = [], train.train_epoch

    def interrupt(*args: Any) -> float:
        begun.append(args)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return train_epoch(*args)

    train.train_epoch = interrupt  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        train.main([*arguments, "--run", "cut"])
    train.main(["--resume", "cut"])
    train.main([*arguments, "--run", "whole"])
    infer.main(["--run", "cut"])


@pytest.mark.parametrize("diff", [LOSS, SGD, ADAMW, HEAD, BACKBONE], ids=NAMES)
def test_an_edit_in_one_place_will_do(diff: str, trained_project: Path, tmp_path: Path) -> None:
    for path in (*ROOT.glob("*.py"), ROOT / "config.yaml"):
        shutil.copy(path, tmp_path)
    for folder in ("fracture", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    subprocess.run(["git", "apply", "-"], input=diff, cwd=tmp_path, text=True, check=True)
    arguments = [f"--split_dir={trained_project}/data/split", "--epochs=4"]
    arguments += RESNET if diff == BACKBONE else LITE
    (tmp_path / "cache").symlink_to(trained_project / "cache")
    process = fork(tmp_path, run_copy, tmp_path, arguments)
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "errors.txt").read_text()
    assert "resumed after epoch 2 of 4" in (tmp_path / "output.txt").read_text()
    runs = tmp_path / "runs"
    assert (runs / "cut/history.jsonl").read_text() == (runs / "whole/history.jsonl").read_text()
    assert "data:image/jpeg" in (runs / "cut/test/report.html").read_text()
