"""The settings: config.yaml, then the file given with --config, then the command line."""

from __future__ import annotations

import argparse
import re
import stat
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_type_hints
from urllib.parse import urlsplit

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fracture.cli import InputError, one_line

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "config.yaml"

POINTS = ("protocol", "sensitivity90", "youden")  # where decisions are made; the first, p = 0.5

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
        ValueError: a value is out of its range.
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
        for name, text in vars(self).items():
            if isinstance(text, str) and (not text.strip() or re.search(r"[\x00-\x1f\x7f]", text)):
                raise ValueError(f"{name} is {text!r}; allowed: one line of text")
        shares, run = self.fractions, self.run or "any"
        backbone = re.fullmatch(r"efficientnet-(b[0-8]|lite[0-2])", self.backbone)
        for name, fits, allowed in (
            ("data_url", is_safe(self.data_url), "an https:// address"),
            ("data_md5", re.fullmatch(r"[0-9a-fA-F]{32}", self.data_md5), "32 hexadecimal digits"),
            ("fractions", min(shares) > 0, "shares greater than 0"),
            ("fractions", abs(sum(shares) - 1) < 1e-6, "shares that add up to 1"),
            ("folds", self.folds == 0 or 3 <= self.folds <= 100, "0 (no folds), or 3 to 100"),
            ("run", re.fullmatch(r"\w[\w.-]{,99}", run) and run != "latest", "a plain folder name"),
            ("backbone", backbone, "efficientnet-b0 to -b8, efficientnet-lite0 to -lite2"),
            ("image_size", 32 <= self.image_size <= 2048, "32 to 2048"),
            ("epochs", 1 <= self.epochs <= 10**6, "1 to 1000000"),
            ("batch_size", 1 <= self.batch_size <= 10**6, "1 to 1000000"),
            ("lr", 0 < self.lr < float("inf"), "a number greater than 0"),
            ("dropout", 0 <= self.dropout < 1, "0 or more, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
            ("workers", self.workers == "auto" or 0 <= self.workers <= 256, "auto, or 0 to 256"),
            ("wandb_project", re.fullmatch(r"[^/\\#?%:]+", self.wandb_project), "no / \\ # ? % :"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


def is_safe(address: str) -> bool:
    """Whether nobody between can change what is downloaded; this machine itself needs no https."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    own = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    return bool(parts.hostname) and "@" not in parts.netloc and (parts.scheme == "https" or own)


LINES = "expected lines of the form 'name: value'"
NAMES = [field.name for field in fields(Config)]
PLACES = ("data_root", "data_url", "split_dir", "cache_dir")


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without this machine's places, for what leaves it: checkpoints, reports, wandb."""
    kept = {name: value for name, value in settings.items() if name not in PLACES}
    return kept | {"weights": Path(settings["weights"]).name}


def settings_parser(description: str | None, arguments: str = "") -> ArgumentParser:
    """A parser with a flag for every setting; a script may add arguments of its own.

    What --help says of a setting is the comment on its line in config.yaml.

    Args:
        description: the script's docstring.
        arguments: the script's own arguments as its usage line shows them.
    """
    meanings = dict(re.findall(r"^(\w+):.*?  # (.+)$", DEFAULT_FILE.read_text(), re.MULTILINE))
    parser = ArgumentParser(
        description=description,
        usage=f"%(prog)s {arguments}[--config FILE] [--SETTING VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="settings that differ from config.yaml's")
    for name, kind in get_type_hints(Config).items():
        help_text = f"{meanings.get(name, name)} [%(default)s]"
        parser.add_argument(f"--{name}", metavar="", type=kind, help=help_text)
    return parser


def parse_settings(
    parser: ArgumentParser, arguments: list[str] | None = None
) -> tuple[Config, Namespace]:
    """Read the settings from their three places; later ones win.

    Args:
        parser: from `settings_parser`.
        arguments: the command line; None takes the process's own.

    Returns:
        The settings, and all that was parsed, with the script's own arguments.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or range. The
            message names the file (or the command line), the key and what is allowed.
    """
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only_config.add_argument("--config")
    # train.py's: a run's own settings, unless others are given.
    only_config.add_argument("--resume")
    source = "command line"
    try:
        known = only_config.parse_known_args(arguments)[0]
        chosen = known.config
        if chosen is None and known.resume:
            chosen = f"runs/{Path(known.resume).name}/config.yaml"
        # Place by place, so that a message can say where the fault stands.
        for source in [str(DEFAULT_FILE)] if chosen is None else [str(DEFAULT_FILE), chosen]:
            parsed = parser.parse_object(read_settings(Path(source)))
            parser.set_defaults(vars(_config(parsed)))
        source = "command line"
        parsed = parser.parse_args(arguments)
        return _config(parsed), parsed
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from error
    except OverflowError as error:  # of the three settings that are made floats of whole numbers
        raise InputError(f"{source}: lr, dropout or fractions: a number beyond 1e308") from error
    except (ArgumentError, ValueError, yaml.YAMLError) as error:
        # jsonargparse's several lines in Python's terms, as one line in the reader's.
        text = one_line(error)
        if unknown := re.match(r"unrecognized arguments: --([\w-]+)", text):
            text = f"unknown setting --{unknown[1]}; {_nearest(unknown[1])}"
        for pattern, plain in (
            (r'^Parser key "(\w+)":', r"\1:"),
            (r"(?:a )?typing\.Literal\[([^]]+)\]", r"one of \1"),
            (r"(?:a )?<class '(\w+)'>", r"type \1"),
            (r"Does not .*\[type int.* Given value:", "Expected auto, or 0 to 256. Got value:"),
            (r"Does not validate .* Given value: ", "Expected text. Got value: "),
            (r"(\S{100})\S+", r"\1..."),
        ):
            text = re.sub(pattern, plain, text)
        raise InputError(f"{source}: {text}") from error


def _config(parsed: Namespace) -> Config:
    values = {name: parsed[name] for name in NAMES}
    for name, value in values.items():
        if value is None and name != "run":
            raise ValueError(f"{name} has no value")
    return Config(**values)


class _Lines(yaml.SafeLoader):
    """YAML without what a list of settings does not need, and what could do harm.

    Nothing is built before it is refused: aliases can unfold to more than the memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        a_list = isinstance(event, yaml.SequenceStartEvent) and isinstance(parent, yaml.MappingNode)
        plain = parent is None or a_list or isinstance(event, yaml.ScalarEvent)
        if not plain or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError(f"{LINES}, without & * ! or nesting as near line {self.line + 1}")
        return super().compose_node(parent, index)


def read_settings(path: Path) -> dict[str, Any]:
    """The values that a file sets, each once; none is checked but for its name.

    Raises:
        ValueError, yaml.YAMLError: it is something else.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > 100_000:
        raise ValueError("no regular file of at most 100 kB")  # a device may never end
    loader = _Lines(path.read_text(encoding="utf-8-sig"))
    root = loader.get_single_node()
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(LINES)
    values: dict[str, Any] = {}
    for key, value in root.value:
        name, line = key.value, key.start_mark.line + 1
        if not isinstance(name, str):
            raise ValueError(LINES)
        if name not in NAMES:
            raise ValueError(f"unknown setting {name!r}; {_nearest(name)}")
        if name in values:  # YAML would take the last
            raise ValueError(f"{name} is set twice, the second time in line {line}")
        try:
            values[name] = loader.construct_object(value, deep=True)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return values


def _nearest(key: str) -> str:
    near = get_close_matches(key, NAMES, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the settings are: {', '.join(NAMES)}"
