"""The settings: config.yaml, then the file given with --config, then the command line."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_type_hints
from urllib.parse import urlsplit

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fracture.cli import InputError, one_line

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.yaml"
RUNS = Path("runs")
OPERATING_POINTS = ("protocol", "sensitivity90", "youden")  # the first decides at p = 0.5
MACHINE_PATHS = ("data_root", "data_url", "split_dir", "cache_dir")

Fit = Literal["squash", "letterbox"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
SelectBy = Literal["val_accuracy", "val_loss"]
Workers = int | Literal["auto"]
WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True)
class Config:
    """Every setting's name, type and range; config.yaml holds the values and the meanings.

    Raises:
        ValueError: a value is out of range.
    """

    data_root: str
    data_url: str
    data_md5: str
    split_dir: str
    cache_dir: str
    fractions: tuple[float, float, float]
    folds: int
    positive_class: str
    run: str | None
    backbone: str
    weights: str
    image_size: int
    fit: Fit
    epochs: int
    batch_size: int
    lr: float
    dropout: float
    select_by: SelectBy
    seed: int
    device: Device
    precision: Precision
    workers: Workers
    wandb_mode: WandbMode
    wandb_project: str

    def __post_init__(self) -> None:
        fractions, run = self.fractions, self.run or "any"
        for name, fits, allowed in (
            ("data_url", is_https(self.data_url), "an https:// address"),
            ("data_md5", re.fullmatch(r"[0-9a-fA-F]{32}", self.data_md5), "32 hexadecimal digits"),
            ("fractions", min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6, "a sum of 1"),
            ("folds", self.folds == 0 or 3 <= self.folds <= 100, "0 (no folds), or 3 to 100"),
            ("run", re.fullmatch(r"\w[\w.-]{,99}", run) and run != "latest", "a plain folder name"),
            ("image_size", 32 <= self.image_size <= 2048, "32 to 2048"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "a number greater than 0"),
            ("dropout", 0 <= self.dropout < 1, "0 or more, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("workers", self.workers == "auto" or 0 <= self.workers <= 256, "auto, or 0 to 256"),
            ("wandb_project", re.fullmatch(r"[^/\\#?%:]+", self.wandb_project), r"no / \ # ? % :"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

    def as_yaml_values(self) -> dict[str, Any]:
        """The settings as config.yaml holds them: lists, not tuples."""
        return asdict(self) | {"fractions": [*self.fractions]}


NAMES = [field.name for field in fields(Config)]


def is_https(address: str) -> bool:
    """True for https, and for http on this machine: nobody can change what is downloaded."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or local)


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without this machine's paths, for checkpoints, reports and wandb."""
    kept = {name: value for name, value in settings.items() if name not in MACHINE_PATHS}
    return kept | {"weights": Path(settings["weights"]).name}


def settings_parser(description: str | None, arguments: str = "") -> ArgumentParser:
    """A parser with a flag for every setting; a script may add arguments of its own.

    A setting's help text is the comment on its line in config.yaml.

    Args:
        description: the script's docstring.
        arguments: the script's own arguments, as the usage line shows them.
    """
    meanings = dict(re.findall(r"^(\w+):.*?  # (.+)$", DEFAULT_FILE.read_text(), re.MULTILINE))
    parser = ArgumentParser(
        description=description,
        usage=f"%(prog)s {arguments}[--config FILE] [--SETTING VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        default_config_files=[str(DEFAULT_FILE)],
        exit_on_error=False,
        allow_abbrev=False,
    )
    only_changes = "a YAML file with the settings that differ from config.yaml"
    parser.add_argument("--config", action="config", metavar="FILE", help=only_changes)
    for name, value_type in get_type_hints(Config).items():
        help_text = f"{meanings.get(name, name)} [%(default)s]"
        parser.add_argument(f"--{name}", metavar="", type=value_type, help=help_text)
    return parser


def parse_settings(
    parser: ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[Config, Namespace]:
    """Read the settings from their three places; later ones win.

    Args:
        parser: from `settings_parser`.
        argv: the command line; None takes that of the process.

    Returns:
        The settings, and all that was parsed, including the script's own arguments.

    Raises:
        InputError: a setting is unknown, set twice, of the wrong type or out of range.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config")
    first.add_argument("--resume")
    source = "command line"
    try:
        known, rest = first.parse_known_args(argv)
        file = known.config
        if known.resume is not None:
            rest += ["--resume", known.resume]
            file = file or str(RUNS / Path(known.resume).name / "config.yaml")
        if file is not None:
            source, from_file = file, ["--config", file]
            refuse_duplicates(Path(file))
            _parse(parser, from_file)  # alone, so that a message can name the file
            source, rest = "command line", from_file + rest  # the command line wins
        return _parse(parser, rest)
    except (ArgumentError, argparse.ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"{source}: {_explain(one_line(error))}") from error


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[Config, Namespace]:
    parsed = parser.parse_args(arguments)
    values = {name: parsed[name] for name in NAMES}
    if empty := [name for name in NAMES if values[name] is None and name != "run"]:
        raise ValueError(f"{empty[0]} has no value")
    return Config(**values), parsed


def refuse_duplicates(path: Path) -> None:
    """YAML takes the last of two lines with one name; a person may have meant the first."""
    root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    names = Counter(key.value for key, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{twice[0]} is set twice")


def _explain(text: str) -> str:
    """A message of jsonargparse without its Python terms, and with the nearest setting's name."""
    for pattern, plain in (
        (r'Parser key "(\w+)":', r"\1:"),
        (r"(?:a )?typing\.Literal\[([^]]+)\]", r"one of \1"),
        (r"(?:an? )?<class '(\w+)'>", r"\1"),
        (
            r"Does not validate .*Subtypes: \[(.*?)\] Errors:.*Given value:",
            r"Expected \1. Got value:",
        ),
    ):
        text = re.sub(pattern, plain, text)
    if not (unknown := re.search(r"unrecognized arguments: --([\w-]+)|Option '(.+)' is not", text)):
        return text
    name = unknown[1] or unknown[2]
    near = get_close_matches(name, NAMES, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "config.yaml lists all settings"
    return f"unknown setting {name!r}; {advice}"
