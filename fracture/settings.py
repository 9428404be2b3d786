"""Where settings come from: config.yaml, the file given with --config, the command line."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fracture.cli import InputError, one_line
from fracture.config import OPERATING_POINTS, AnyConfig, Config, FinetuneConfig, run_folder


def settings_parser(
    kind: type[Config], description: str | None = None, arguments: str = ""
) -> ArgumentParser:
    """A parser with a flag for every setting; a script may add arguments of its own.

    A setting's help text is the comment on its line in the last of `kind.files` that has it.
    Those that the script does not use are not shown.

    Args:
        kind: `Config`, or a subclass of it.
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
    meanings = read_meanings(kind)
    types = get_type_hints(kind)
    for name in (field.name for field in fields(kind)):
        help_text = f"{meanings.get(name, name)} [%(default)s]"
        help_text = argparse.SUPPRESS if name in kind.unused else help_text
        parser.add_argument(f"--{name}", metavar="", type=types[name], help=help_text)
    for file in kind.files:
        parser.set_defaults(yaml.safe_load(file.read_text()))
    return parser


def read_meanings(kind: type[Config]) -> dict[str, str]:
    """The comment on each setting's line; of two files, the last one's."""
    text = "\n".join(file.read_text() for file in kind.files)
    return dict(re.findall(r"^(\w+):.*?  # (.+)$", text, re.MULTILINE))


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
        InputError: a setting is unknown, set twice, of the wrong type or out of range, or a flag
            is one that the script would ignore.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        parsed = parser.parse_args(words)
        flags = {word[2:].partition("=")[0] for word in words if word[:2] == "--"}
        if ignored := sorted(flags & kind.unused):
            raise ValueError(f"{kind.script} does not use {ignored[0]!r}; {kind.instead}")
        if parsed.get("resume") and not parsed.config:
            file = run_folder(parsed.resume) / "config.yaml"
            if not file.is_file():
                raise ValueError(f"--resume: {file.parent} is not a run; omit it to start one")
            parsed = parser.parse_args(["--config", str(file), *words])
        for file in parsed.config or []:
            refuse_duplicates(Path(file))
        values = {field.name: parsed[field.name] for field in fields(kind)}
        types = get_type_hints(kind)
        empty = [n for n in values if values[n] is None and NoneType not in get_args(types[n])]
        if empty:
            raise ValueError(f"{empty[0]} has no value")
        return kind(**values), parsed
    except (ArgumentError, ValueError, OSError, yaml.YAMLError) as error:
        raise InputError(f"settings: {explain(one_line(error), kind)}") from error


def training_settings(
    kind: type[AnyConfig], description: str | None, argv: Sequence[str] | None
) -> tuple[AnyConfig, Namespace]:
    """`parse_settings` for a script that trains, with its argument --resume.

    The positive class is the split's own, if no file and no flag names another.
    """
    parser = settings_parser(kind, description, "[--resume RUN] ")
    help_text = "go on with an interrupted run, or with a finished one for more --epochs"
    parser.add_argument("--resume", metavar="RUN", help=help_text)
    config, parsed = parse_settings(kind, parser, argv)
    split = Path(config.split_dir) / "config.yaml"
    if split.is_file() and not parsed.resume:
        parser.set_defaults(positive_class=read_config(split).positive_class)
        config, parsed = parse_settings(kind, parser, argv)
    return config, parsed


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


def operating_point(text: str) -> str:
    """What --at takes.

    Raises:
        ArgumentTypeError: it is neither a threshold nor an operating point.
    """
    if text not in OPERATING_POINTS and not re.fullmatch(
        r"((sensitivity|specificity)=)?(0|0?\.\d+|1)", text
    ):
        allowed = f"{', '.join(OPERATING_POINTS)}, 0 to 1, sensitivity=0.95, specificity=0.9"
        raise argparse.ArgumentTypeError(f"{text!r} is none of: {allowed}")
    return text


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
    words = name.replace("_", " ").replace("-", " ")
    near = near or [name for name, meaning in read_meanings(kind).items() if words in meaning]
    advice = f"did you mean {near[0]!r}?" if near else "config.yaml lists all of them"
    if name in get_type_hints(FinetuneConfig):
        advice = "only finetune.py has it"
    return f"{name!r} is unknown; {advice}"
