"""The settings: config.yaml, then the file given with --config, then the command line."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fracture.cli import InputError, one_line

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.yaml"
RUNS = Path("runs")
OPERATING_POINTS = ("protocol", "sensitivity90", "youden")  # the first decides at p = 0.5
MACHINE_PATHS = ("data_root", "data_url", "split_dir", "cache_dir")

Fit = Literal["squash", "letterbox"]
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
    select_by: Literal["val_accuracy", "val_loss"]
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    workers: int | Literal["auto"]
    wandb_mode: WandbMode
    wandb_project: str

    def __post_init__(self) -> None:
        parts, run, workers = self.fractions, self.run or "any", self.workers
        a_split = min(parts) > 0 and abs(sum(parts) - 1) < 1e-6
        for name, fits, allowed in (
            ("data_url", is_https(self.data_url), "an https:// address"),
            ("data_md5", re.fullmatch(r"[0-9a-fA-F]{32}", self.data_md5), "32 hexadecimal digits"),
            ("fractions", a_split, "shares that add up to 1"),
            ("folds", self.folds == 0 or 3 <= self.folds <= 100, "0 (no folds), or 3 to 100"),
            ("run", re.fullmatch(r"\w[\w.-]{,99}", run) and run != "latest", "a plain folder name"),
            ("image_size", 32 <= self.image_size <= 2048, "32 to 2048"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "a number greater than 0"),
            ("dropout", 0 <= self.dropout < 1, "0 or more, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("workers", workers == "auto" or 0 <= workers <= 256, "auto, or 0 to 256"),
            ("wandb_project", re.fullmatch(r"[^/\\#?%:]+", self.wandb_project), r"no / \ # ? % :"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


NAMES = [field.name for field in fields(Config)]


def is_https(address: str) -> bool:
    """True for https, and for http on this machine: nobody can change what is downloaded."""
    return bool(re.match(r"https://[^/]|http://(127\.0\.0\.1|localhost)(:\d+)?(/|$)", address))


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without this machine's paths, for checkpoints, reports and wandb."""
    kept = {name: value for name, value in settings.items() if name not in MACHINE_PATHS}
    weights, fractions = Path(settings["weights"]).name, [*settings["fractions"]]
    return kept | {"weights": weights, "fractions": fractions}


def settings_parser(description: str | None = None, arguments: str = "") -> ArgumentParser:
    """A parser with a flag for every setting; a script may add arguments of its own.

    A setting's help text is the comment on its line in config.yaml.

    Args:
        description: the script's docstring.
        arguments: the script's own arguments, as the usage line shows them.
    """
    parser = ArgumentParser(
        description=description,
        usage=f"%(prog)s {arguments}[--config FILE] [--SETTING VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    help_text = "a YAML file with the settings that differ from config.yaml"
    parser.add_argument("--config", action="config", metavar="FILE", help=help_text)
    meanings = dict(re.findall(r"^(\w+):.*?  # (.+)$", DEFAULT_FILE.read_text(), re.MULTILINE))
    for name, value_type in get_type_hints(Config).items():
        help_text = f"{meanings.get(name, name)} [%(default)s]"
        parser.add_argument(f"--{name}", metavar="", type=value_type, help=help_text)
    parser.set_defaults(yaml.safe_load(DEFAULT_FILE.read_text()))
    return parser


def parse_settings(
    parser: ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[Config, Namespace]:
    """Read the settings from their three places; what comes later on the command line wins.

    A run to resume brings its own settings, unless a file is given.

    Args:
        parser: from `settings_parser`.
        argv: the command line; None takes that of the process.

    Returns:
        The settings, and all that was parsed, including the script's own arguments.

    Raises:
        InputError: a setting is unknown, set twice, of the wrong type or out of range.
    """
    try:
        parsed = parser.parse_args(argv)
        if parsed.get("resume") and not parsed.config:
            file = RUNS / Path(parsed.resume).name / "config.yaml"
            parsed = parser.parse_args(["--config", str(file), *(argv or sys.argv[1:])])
        for file in parsed.config or []:
            refuse_duplicates(Path(file))
        values = {name: parsed[name] for name in NAMES}
        if empty := [name for name in NAMES if values[name] is None and name != "run"]:
            raise ValueError(f"{empty[0]} has no value")
        return Config(**values), parsed
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"settings: {explain(one_line(error))}") from error


def read_config(path: Path) -> Config:
    """The settings in a run's or a split's config.yaml.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return parse_settings(settings_parser(), ["--config", str(path)])[0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def refuse_duplicates(path: Path) -> None:
    """YAML takes the last of two lines with one name; a person may have meant the first."""
    root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for name, count in Counter(key.value for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name} is set twice in {path}")


def explain(text: str) -> str:
    """jsonargparse's message, with the nearest setting where a name is unknown."""
    unknown = re.search(r"unrecognized arguments: --([\w-]+)|Option '(.+)' is not", text)
    if not unknown:
        text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "one of ")
        return re.sub(r'Parser key "(\w+)":', r"\1:", text)
    name = unknown[1] or unknown[2]
    near = get_close_matches(name, NAMES, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "config.yaml lists all of them"
    return f"{name!r} is unknown; {advice}"
