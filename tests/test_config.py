"""Every setting is written once, and a wrong one is refused in one line."""

import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune
import infer
import split_dataset
import train
from fracture import config, settings
from fracture.cli import InputError
from fracture.config import Config, FinetuneConfig, SplitConfig
from fracture.settings import read_config, settings_parser
from tests.conftest import ROOT, run_expecting_error

RECIPES = sorted({*ROOT.glob("recipes/*.yaml")} - {ROOT / "recipes/sweep.yaml"})  # it is wandb's
TEXT = Config.files[0].read_text()
DEFAULTS = yaml.safe_load(TEXT)
PROTOCOL = {
    "backbone": "efficientnet-b6", "weights": "imagenet", "image_size": 224, "fit": "squash",
    "batch_size": 16, "lr": 0.001, "dropout": 0.5, "epochs": 20, "select_by": "val_accuracy",
    "fractions": [0.8, 0.1, 0.1], "seed": 42,
}  # fmt: skip


def read(argv: Sequence[str], kind: type[Config] = Config) -> Config:
    return settings.parse_settings(kind, settings_parser(kind), argv)[0]


def test_every_setting_has_its_default_a_meaning_a_flag_and_help() -> None:
    meanings = dict(re.findall(r"^(\w+):.*?  # (.+)$", TEXT, re.MULTILINE))
    assert list(meanings) == list(DEFAULTS) == [field.name for field in fields(Config)]
    shown = "".join(settings_parser(Config).format_help().split())  # it wraps lines
    for name, meaning in meanings.items():
        assert (f"--{name}" in shown) == (name not in Config.unused)
        if name in Config.unused:
            continue
        assert "".join(meaning.split()) in shown
    assert asdict(read([])) == DEFAULTS == DEFAULTS | PROTOCOL


def test_a_file_needs_only_what_differs_and_the_last_word_wins(tmp_path: Path) -> None:
    (file := tmp_path / "mine.yaml").write_text("lr: 1e-4\nepochs: 5\n")  # 1e-4 is text in YAML 1.1
    assert asdict(read(["--config", str(file)])) == DEFAULTS | {"lr": 1e-4, "epochs": 5}
    assert read(["--config", str(file), "--epochs", "7"]).epochs == 7
    assert read(["--epochs", "7", "--config", str(file)]).epochs == 5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_holds_only_what_differs_from_the_defaults(recipe: Path) -> None:
    """Those of finetune.py differ from finetune.yaml, which differs from config.yaml."""
    kind = FinetuneConfig if recipe.stem.startswith("finetune") else Config
    files = [file for file in kind.files if file != recipe]
    defaults = {k: v for file in files for k, v in yaml.safe_load(file.read_text()).items()}
    content = yaml.safe_load(recipe.read_text())
    parsed, _ = settings.parse_settings(kind, settings_parser(kind), ["--config", str(recipe)])
    assert asdict(parsed) == defaults | content
    if recipe not in kind.files:
        assert all(defaults[name] != value for name, value in content.items())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lrr: 1", "did you mean 'lr'"), ("batch-size: 1", "did you mean 'batch_size'"),
        ("quite_other: 1", "config.yaml lists all"), ("workers: many", "Does not validate"),
        ("lr: fast", "Expected a float"), ("epochs: 2.5", "Expected a"), ("fit: x", "Expected a"),
        ("epochs: true", "Expected a"), ("epochs: 0", "1 or more"), ("batch_size: 0", "1 or more"),
        ("lr: .nan", "greater than 0"), ("lr: .inf", "greater than 0"), ("lr: 0", "greater than 0"),
        ("dropout: 1", "less than 1"), ("image_size: 8", "32 to 2048"), ("seed: -1", "0 to 42949"),
        ("folds: 2", "0 (no folds), or 3 to 100"), ("workers: -1", "auto, or 0 to 256"),
        ("fractions: [0.8, 0.1, 0.2]", "add up to 1"), ("fractions: [1, 0, 0]", "add up to 1"),
        ("run: a/b", "a plain folder name"), ("run: ..", "a plain folder name"),
        ("run: latest", "a plain folder name"), ("wandb_project: a/b", "no / "),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, line: str, said: str) -> None:
    file, (name, value) = tmp_path / "mine.yaml", line.split(": ")
    file.write_text(line)
    kind = SplitConfig if name in Config.unused else Config
    for argv in (["--config", str(file)], [f"--{name}={value}"]):
        message = run_expecting_error(lambda words: read(words, kind), *argv)
        assert name in message
        assert said in message


@pytest.mark.parametrize(
    ("script", "flag", "said"),
    [
        (infer, "--lr=1", "infer.py does not use 'lr'; the run brings its own"),
        (train, "--folds=5", "train.py does not use 'folds'"),
        (split_dataset, "--epochs=5", "split_dataset.py does not use 'epochs'"),
        (finetune, "--views=[]", "finetune.py does not use 'views'"),
        (train, "--learning_rate=1", "'learning_rate' is unknown; did you mean 'lr'?"),
        (train, "--clip=1", "'clip' is unknown; only finetune.py has it"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(script: Any, flag: str, said: str) -> None:
    assert run_expecting_error(script.main, flag).startswith(f"settings: {said}")


def test_the_positive_class_is_the_splits_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("positive_class: ill\n")
    split = ["--split_dir", str(tmp_path)]
    assert train.arguments(split)[0].positive_class == "ill"
    assert train.arguments([*split, "--positive_class", "well"])[0].positive_class == "well"


@pytest.mark.parametrize("name", ["lr", "split_dir"])
def test_only_run_may_have_no_value(tmp_path: Path, name: str) -> None:
    (file := tmp_path / "mine.yaml").write_text(f"{name}: null\nrun: null\n")
    assert run_expecting_error(read, "--config", str(file)) == f"settings: {name} has no value"


@pytest.mark.parametrize("text", ["lr: 0.1\nepochs: 2\nlr: 0.2", "fit: [", "- lr"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "mine.yaml").write_text(text)
    reason = "lr is set twice in " if text.count("lr") == 2 else ""
    with pytest.raises(InputError, match=f"^{file}: settings: {reason}[^\n]+$"):
        read_config(file)
    assert "gone.yaml" in run_expecting_error(read, "--config", "gone.yaml")


def test_what_is_shared_names_no_folder_of_this_machine() -> None:
    shared = config.shareable(DEFAULTS | {"weights": "/home/someone/own.pth"})
    assert DEFAULTS.keys() - shared.keys() == {"data_root", "data_url", "split_dir", "cache_dir"}
    assert shared["weights"] == "own.pth"
