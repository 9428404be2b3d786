"""The scripts as a person runs them, and the shape of the whole program."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from fracture.config import (
    Config,
    ExportConfig,
    FinetuneConfig,
    InferConfig,
    PageConfig,
    SplitConfig,
)
from tests.conftest import LITE, ROOT, fork_script, run_process, wait_until

CONFIGS = (Config, FinetuneConfig, InferConfig, PageConfig, ExportConfig, SplitConfig)
KINDS = {kind.script: kind for kind in CONFIGS}
LIMITS = {"train.py": 130, "finetune.py": 160, "infer.py": 110, "split_dataset.py": 100}
LIMITS |= {"app.py": 100, "export.py": 110}
SCRIPTS = {Path(name).stem for name in LIMITS}
ROOMS = ["fracture", "data", "models", "features", "runs", "evaluation"]


def test_the_printed_commands_lead_from_a_data_set_to_its_test(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/FracAtlas").symlink_to(drawn)
    output = "next: python split_dataset.py"
    for added in ((), (*LITE, "--epochs", "3", "--image_size", "96"), ()):
        (command,) = re.findall(r"^next: python (.+)$", output, re.MULTILINE)
        done = run_process(tmp_path, *command.split(), *added)
        assert (done.returncode, done.stderr) == (0, "")
        output = done.stdout
    assert re.search(r"\naccuracy +\d\.\d+ \(\d\.\d+ to \d\.\d+\) +\d+ images\n", output)
    names = {path.name for path in tmp_path.glob("runs/latest/test/*")}
    assert names == {"metrics.json", "predictions.csv", "films.json", "report.html", "plots"}


@pytest.mark.parametrize("script", LIMITS)
def test_help_and_typos_are_answered_without_torch(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert modules & {"jsonargparse", "torch", "numpy", "wandb", "PIL"} == {"jsonargparse"}
    settings = yaml.safe_load((ROOT / "config.yaml").read_text())
    # Each with its default.
    assert ("[data/split]" in done.stdout) == ("split_dir" not in KINDS[script].unused)
    shown = {name for name in settings if f"  --{name} " in done.stdout}
    assert shown == settings.keys() - KINDS[script].unused
    done = run_process(tmp_path, script, "--sed", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script}: settings: 'sed' is unknown; did you mean 'seed'?\n"


def test_a_single_film_waits_for_no_package_that_it_does_not_need(project: Path) -> None:
    film = next(project.glob("data/split/test/*/*"))
    command = [sys.executable, "-X", "importtime", str(ROOT / "infer.py"), str(film)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    modules = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    slow = {"wandb", "matplotlib", "sklearn", "scipy", "torchvision", "pandas", "jinja2"}
    assert modules & {"torch", *slow} == {"torch"}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_epochs_and_resume_goes_on(project: Path, sent: int, capsys: Any) -> None:
    run = project / f"runs/signal-{sent}"
    process = fork_script(project, "train.py", *LITE, "--run", run.name, "--epochs", "80")
    wait_until(lambda: "\n    3  " in (project / "output.txt").read_text(), process)
    os.kill(process.pid or 0, sent)
    process.join(60)
    told = (130, "train.py: interrupted\n") if sent == signal.SIGINT else (143, "")
    assert (process.exitcode, (project / "errors.txt").read_text()) == told
    reached = torch.load(run / "last.pt", weights_only=True)["epoch"]
    assert 3 <= reached < 80
    train.main(["--resume", run.name])
    assert f"resumed after epoch {reached} of 80" in capsys.readouterr().out
    assert (run / "history.jsonl").read_text().count("\n") == 80


def test_a_closed_pipe_causes_no_traceback(project: Path, drawn: Path) -> None:
    shell = ["sh", "-c", '"$@" | true', "sh", sys.executable, "-u", str(ROOT / "split_dataset.py")]
    command = [*shell, "--data_root", str(drawn), "--split_dir", "new"]
    done = subprocess.run(command, cwd=project, capture_output=True)
    assert (project / "new/manifest.csv").exists()
    assert done.stderr == b""


def test_files_and_functions_stay_small() -> None:
    patterns = ("*.py", "fracture/**/*.py", "benchmarks/**/*.py", "tests/**/*.py")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text()
        assert text.count("\n") <= LIMITS.get(path.name, 250), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= (45 if node.name == "main" else 50), f"{path}: {node.name}"


def test_imports_run_one_way() -> None:
    """From evaluation down to data and to the package's own modules, and never to a script.

    The package's door, fracture/__init__.py, may open any room.
    """
    for path in {*(ROOT / "fracture").rglob("*.py")} - {ROOT / "fracture/__init__.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                first, *rest = (node.module or "").split(".")
                assert first not in {*SCRIPTS, "benchmarks", "tests"}, path
                room = rest[0] if first == "fracture" and rest[0] in ROOMS else "fracture"
                assert ROOMS.index(room) <= ROOMS.index(path.parent.name), path
