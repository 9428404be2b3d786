"""The settings: one list, three places, and a clear refusal of anything else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fracture.cli import InputError
from fracture.config import DEFAULT_FILE, Config, parse_settings, settings_parser
from tests.conftest import ROOT, run_script


def read(*arguments: str) -> Config:
    return parse_settings(settings_parser(None), list(arguments))[0]


def test_every_setting_stands_in_config_yaml_with_its_meaning() -> None:
    with_meaning = re.findall(r"^(\w+):.*?  # .+$", DEFAULT_FILE.read_text(), re.MULTILINE)
    assert with_meaning == [field.name for field in fields(Config)]


def test_the_defaults_are_the_protocol() -> None:
    config = read()
    assert (config.backbone, config.image_size, config.fit) == ("efficientnet-b6", 224, "squash")
    assert (config.batch_size, config.lr, config.epochs, config.dropout) == (16, 0.001, 20, 0.5)
    assert (config.fractions, config.select_by, config.seed) == (
        (0.8, 0.1, 0.1),
        "val_accuracy",
        42,
    )


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 1e-4\nepochs: 5\n")
    config = read("--config", str(file), "--epochs", "7")
    assert (config.lr, config.epochs, config.batch_size) == (1e-4, 7, 16)


def test_the_demo_gives_every_setting() -> None:
    assert list(yaml.safe_load((ROOT / "demo.yaml").read_text())) == [
        f.name for f in fields(Config)
    ]


@pytest.mark.parametrize(
    ("line", "named", "allowed"),
    [
        ("lrr: 1", "lrr", "did you mean 'lr'"),
        ("quite_other: 1", "quite_other", "the settings are"),
        ("lr: fast", "lr", "float"),
        ("lr: .nan", "lr", "greater than 0"),
        ("lr: -1", "lr", "greater than 0"),
        ("lr: .inf", "lr", "greater than 0"),
        ("epochs: 0", "epochs", "1 to 1000000"),
        ("epochs: 2.5", "epochs", "int"),
        ("epochs: true", "epochs", "int"),
        ("dropout: 1", "dropout", "less than 1"),
        ("image_size: 8", "image_size", "32 to 2048"),
        ("fit: stretch", "fit", "'squash', 'letterbox'"),
        ("device: tpu", "device", "'cpu'"),
        ("fractions: [0.8, 0.1, 0.2]", "fractions", "add up to 1"),
        ("fractions: [0.9, 0.1]", "fractions", "3"),
        ("run: a/b", "run", "folder name"),
        ("fractions: [1, 0, 0]", "fractions", "greater than 0"),
        ("backbone: efficientnet-b9", "backbone", "efficientnet-lite0"),
        ("run: latest", "run", "folder name"),
        ("run: ..", "run", "folder name"),
        ("run: 2026", "run", "text"),
        ("lr: null", "lr", "no value"),
        ("weights:", "weights", "no value"),
        ("wandb_project: a/b", "wandb_project", "no /"),
        ("data_url: http://example.org/films.zip", "data_url", "https://"),
        ("fit: [", "", "expected"),
        ("- lr", "", "name: value"),
        ("", "", "name: value"),
    ],
)
def test_a_wrong_line_is_refused_in_one_line_that_says_where_and_what_is_allowed(
    tmp_path: Path, line: str, named: str, allowed: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(line)
    with pytest.raises(InputError) as refusal:
        read("--config", str(file))
    message = str(refusal.value)
    assert message.startswith(f"{file}: ")
    assert named in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize("arguments", [["--lr", "x"], ["--epochs", "0"], ["--config"]])
def test_a_wrong_flag_is_refused_as_the_command_lines(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=f"^command line: .*{arguments[0].strip('-')[:2]}"):
        read(*arguments)


@pytest.mark.parametrize(("flag", "meant"), [("--lrr", "lr"), ("--batch-size", "batch_size")])
def test_a_mistyped_flag_is_answered_with_the_nearest(flag: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown setting {flag}; did you mean '{meant}'"):
        read(flag, "1")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.yaml: No such file or directory$"):
        read("--config", str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize("script", ["train.py", "infer.py", "split_dataset.py"])
def test_help_and_wrong_settings_answer_before_torch_is_imported(
    tmp_path: Path, script: str
) -> None:
    # A torch that cannot be imported stands in front of the real one: whoever imports it fails.
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    helped = run_script(tmp_path, script, "--help", PYTHONPATH=str(tmp_path))
    assert helped.returncode == 0
    assert "--positive_class" in helped.stdout
    assert max(map(len, helped.stdout.splitlines())) <= 100
    refused = run_script(tmp_path, script, "--epochs", "0", PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr == f"{script}: command line: epochs is 0; allowed: 1 to 1000000\n"
