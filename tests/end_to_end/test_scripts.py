"""The scripts as a person runs them, and the shape of the whole program."""

import ast
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
from fracture.config import Config, ExportConfig, FinetuneConfig, InferConfig, SplitConfig
from tests.conftest import LITE, ROOT, run_process

KINDS = {
    kind.script: kind for kind in (Config, FinetuneConfig, InferConfig, ExportConfig, SplitConfig)
}
LIMITS = {"train.py": 130, "finetune.py": 160, "infer.py": 110, "split_dataset.py": 100}
LIMITS |= {"export.py": 110}
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
    assert {"[data/split]", "[imagenet]"} & {*done.stdout.split()}  # each with its default
    shown = {name for name in settings if f"  --{name} " in done.stdout}
    assert shown == settings.keys() - KINDS[script].unused
    done = run_process(tmp_path, script, "--sed", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{script}: settings: 'sed' is unknown; did you mean 'seed'?\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_epochs_and_resume_goes_on(project: Path, sent: int, capsys: Any) -> None:
    run = project / f"runs/signal-{sent}"
    command = ["-u", str(ROOT / "train.py"), *LITE, "--run", run.name, "--epochs", "80"]
    with subprocess.Popen([sys.executable, *command], stdout=-1, stderr=-1, text=True) as process:
        assert any(line.startswith("    3  ") for line in process.stdout or ())
        process.send_signal(sent)
        errors = process.communicate(timeout=60)[1]
    told = (130, "train.py: interrupted\n") if sent == signal.SIGINT else (143, "")
    assert (process.returncode, errors) == told
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
    """From evaluation down to data and to the package's own modules, and never to a script."""
    for path in (ROOT / "fracture").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                first, *rest = (node.module or "").split(".")
                assert first not in {*SCRIPTS, "benchmarks", "tests"}, path
                room = rest[0] if first == "fracture" and rest[0] in ROOMS else "fracture"
                assert ROOMS.index(room) <= ROOMS.index(path.parent.name), path
