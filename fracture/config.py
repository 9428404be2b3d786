"""The settings: config.yaml, then the file given with --config, then the command line."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fracture.cli import InputError, one_line

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs")
OPERATING_POINTS = ("protocol", "sensitivity90", "youden")  # the first decides at p = 0.5
MACHINE_PATHS = ("data_root", "data_url", "split_dir", "cache_dir")

Fit = Literal["squash", "letterbox"]
VIEW = r"(squash|letterbox)-[1-9]\d\d(-mirror)?"
WandbMode = Literal["auto", "online", "offline", "disabled"]
AnyConfig = TypeVar("AnyConfig", bound="Config")


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
    views: list[str]
    average_views: bool
    epochs: int
    batch_size: int
    lr: float
    dropout: float
    select_by: Literal["val_accuracy", "val_loss", "val_roc_auc"]
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    workers: int | Literal["auto"]
    wandb_mode: WandbMode
    wandb_project: str

    script: ClassVar = "train.py"
    files: ClassVar[tuple[Path, ...]] = (ROOT / "config.yaml",)

    def __post_init__(self) -> None:
        parts, run, workers = self.fractions, self.run or "any", self.workers
        good_views = all(re.fullmatch(VIEW, view) for view in self.views)
        a_split = min(parts) > 0 and abs(sum(parts) - 1) < 1e-6
        for name, fits, allowed in (
            ("data_url", is_https(self.data_url), "an https:// address"),
            ("data_md5", re.fullmatch(r"[0-9a-fA-F]{32}", self.data_md5), "32 hexadecimal digits"),
            ("fractions", a_split, "shares that add up to 1"),
            ("folds", self.folds == 0 or 3 <= self.folds <= 100, "0 (no folds), or 3 to 100"),
            ("run", re.fullmatch(r"\w[\w.-]{,99}", run) and run != "latest", "a plain folder name"),
            ("image_size", 32 <= self.image_size <= 2048, "32 to 2048"),
            ("views", good_views, "FIT-SIZE or FIT-SIZE-mirror, of 100 to 999 pixels"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("lr", 0 < self.lr < float("inf"), "a number greater than 0"),
            ("dropout", 0 <= self.dropout < 1, "0 or more, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("workers", workers == "auto" or 0 <= workers <= 256, "auto, or 0 to 256"),
            ("wandb_project", re.fullmatch(r"[^/\\#?%:]+", self.wandb_project), r"no / \ # ? % :"),
        ):
            self.check(name, bool(fits), allowed)

    def check(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """The settings of finetune.py; recipes/finetune.yaml holds what it adds and changes."""

    init: str | None
    box_weight: float
    cell_weight: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    clip: float
    ema: float
    mirror: bool
    turn: float
    shift: float
    zoom: float
    contrast: float
    brightness: float

    script = "finetune.py"
    files = (*Config.files, ROOT / "recipes" / "finetune.yaml")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("box_weight", "cell_weight", "weight_decay"):
            self.check(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        for name in ("warmup", "label_smoothing", "ema", "zoom", "contrast"):
            self.check(name, 0 <= getattr(self, name) < 1, "0 or more, less than 1")
        for name in ("shift", "brightness"):
            self.check(name, 0 <= getattr(self, name) <= 0.5, "0 to 0.5")
        self.check("turn", 0 <= self.turn <= 180, "0 to 180")
        self.check("clip", self.clip > 0, "a number greater than 0")


def is_https(address: str) -> bool:
    """True for https, and for http on this machine: nobody can change what is downloaded."""
    return bool(re.match(r"https://[^/]|http://(127\.0\.0\.1|localhost)(:\d+)?(/|$)", address))


def shareable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without this machine's paths, for checkpoints, reports and wandb."""
    kept = {name: value for name, value in settings.items() if name not in MACHINE_PATHS}
    weights, fractions = Path(settings["weights"]).name, [*settings["fractions"]]
    return kept | {"weights": weights, "fractions": fractions}


def settings_parser(
    kind: type[Config], description: str | None = None, arguments: str = ""
) -> ArgumentParser:
    """A parser with a flag for every setting; a script may add arguments of its own.

    A setting's help text is the comment on its line in the last of `kind.files` that has it.

    Args:
        kind: `Config`, or a subclass with more settings.
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
    text = "\n".join(file.read_text() for file in kind.files)
    meanings = dict(re.findall(r"^(\w+):.*?  # (.+)$", text, re.MULTILINE))
    types = get_type_hints(kind)
    for name in (field.name for field in fields(kind)):
        help_text = f"{meanings.get(name, name)} [%(default)s]"
        parser.add_argument(f"--{name}", metavar="", type=types[name], help=help_text)
    for file in kind.files:
        parser.set_defaults(yaml.safe_load(file.read_text()))
    return parser


def parse_settings(
    kind: type[AnyConfig], parser: ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[AnyConfig, Namespace]:
    """Read the settings from their three places; what comes later on the command line wins.

    A run to resume brings its own settings, unless a file is given.

    Args:
        kind: as for `settings_parser`.
        parser: from there.
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
        values = {field.name: parsed[field.name] for field in fields(kind)}
        empty = [name for name in values if values[name] is None and name not in ("run", "init")]
        if empty:
            raise ValueError(f"{empty[0]} has no value")
        return kind(**values), parsed
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"settings: {explain(one_line(error), kind)}") from error


def training_settings(
    kind: type[AnyConfig], description: str | None, argv: Sequence[str] | None
) -> tuple[AnyConfig, Namespace]:
    """`parse_settings` for a script that trains, with its argument --resume."""
    parser = settings_parser(kind, description, "[--resume RUN] ")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run")
    return parse_settings(kind, parser, argv)


def read_config(path: Path) -> FinetuneConfig:
    """The settings in a run's or a split's config.yaml, whichever script wrote it.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        parser = settings_parser(FinetuneConfig)
        return parse_settings(FinetuneConfig, parser, ["--config", str(path)])[0]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def refuse_duplicates(path: Path) -> None:
    """YAML takes the last of two lines with one name; a person may have meant the first."""
    root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for name, count in Counter(key.value for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{name} is set twice in {path}")


def explain(text: str, kind: type[Config]) -> str:
    """jsonargparse's message, with the nearest setting where a name is unknown."""
    unknown = re.search(r"unrecognized arguments: --([\w-]+)|Option '(.+)' is not", text)
    if not unknown:
        text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "one of ")
        return re.sub(r'Parser key "(\w+)":', r"\1:", text)
    name = unknown[1] or unknown[2]
    near = get_close_matches(name, get_type_hints(kind).keys(), n=1)
    advice = f"did you mean {near[0]!r}?" if near else "config.yaml lists all of them"
    if name in get_type_hints(FinetuneConfig):
        advice = "it is a setting of finetune.py"
    return f"{name!r} is unknown; {advice}"
