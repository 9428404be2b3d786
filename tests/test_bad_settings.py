"""Every wrong setting and every wrong file of settings is refused at once, by name, in one line."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

from fracture.cli import InputError
from fracture.config import Config, parse_settings, settings_parser
from tests.conftest import run_script

Count = Callable[[str, object], None]

HINTS = get_type_hints(Config)
KINDS = ("[]", "{}", "[1, 2]", "{a: 1}", "2026-01-01", "!!binary aGk=", ".nan", "9" * 400)
NUMBERS = (
    *KINDS,
    "text",
    '""',
    "true",
    ".inf",
    "-.inf",
    "1e999",
    "-1",
    f"-{'9' * 400}",
    "9" * 5000,
)
WRONG: dict[object, tuple[str, ...]] = {  # by the setting's type
    int: (*NUMBERS, "null", "1.5", "1e400"),
    float: (*NUMBERS, "null"),
    str: (*KINDS, "null", '""', '" "', '"a\\0b"', '"a\\nb"', '"\\e[31m"', "true", "1", "1.5"),
    str | None: (*KINDS, '""', '"a\\0b"', "../run", "true", "1"),
    tuple[float, float, float]: (
        *NUMBERS,
        "[.nan, 0.5, 0.5]",
        "[2, -1, 0]",
        "[1, 0, 0]",
        "[a, b, c]",
    ),
}

DEEP = "[" * 9000
BOMB = "&a [1, 1, 1, 1, 1, 1, 1, 1, 1]"
for _level in "bcdefghij":
    BOMB = f"&{_level} [{BOMB}, {', '.join([f'*{chr(ord(_level) - 1)}'] * 8)}]"
FILES: dict[str, tuple[bytes, str]] = {  # by what is wrong: the file, and what must be said of it
    "a key twice": (b"lr: 0.1\nepochs: 2\nlr: 0.2\n", "lr is set twice, the second time in line 3"),
    "a key twice in braces": (b'{lr: 0.1, "lr": 0.1}', "lr is set twice"),
    "unknown": (b"lerning_rate: 1\n", "unknown setting 'lerning_rate'"),
    "a number": (b"1: 2\n", "unknown setting '1'"),
    "merged": (b"<<: {lr: 0.1}\n", "or nesting"),
    "a list as key": (b"? [a]\n: 1\n", "'name: value'"),
    "a bomb": (f"fractions: {BOMB}\n".encode(), "without & * !"),
    "itself": (b"fractions: &a [*a, *a, *a]\n", "without & * !"),
    "a program": (b"lr: !!python/object/apply:os.mkdir [owned]\n", "without & * !"),
    "depth": (f"lr: {DEEP}".encode(), "without & * !"),
    "a tag": (b"lr: !!bool x\n", "without & * !"),
    "tabs": (b"lr:\t0.1\n\tepochs: 2\n", "line 1, column 4"),
    "Latin-1": ("wandb_project: r\xf6ntgen\n".encode("latin-1"), "can't decode byte 0xf6"),
    "UTF-16": ("lr: 0.1\n".encode("utf-16"), "can't decode byte 0xff"),
    "a NUL": (b"lr: 0.1\0\n", "#x0000"),
    "empty": (b"", "'name: value'"),
    "a comment": (b"# lr: 0.1\n", "'name: value'"),
    "two documents": (b"lr: 0.1\n---\nlr: 0.2\n", "a single document"),
    "half a list": (b"fractions: [0.8, 0.1\n", "expected"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "can't decode byte 0x89"),
    "large": (b"#" * 200_000, "at most 100 kB"),
}


def refusal_of(*arguments: str) -> str:
    begun = time.monotonic()
    with pytest.raises(InputError) as refusal:
        parse_settings(settings_parser(None), [*arguments])
    assert time.monotonic() - begun < 5
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 700
    return str(refusal.value)


def test_every_wrong_setting_is_refused_by_name(tmp_path: Path, record_property: Count) -> None:
    file, tried = tmp_path / "mine.yaml", 0
    cases = [(n, v) for n, kind in HINTS.items() for v in WRONG.get(kind, (*KINDS, "null", "none"))]
    for name, value in cases:
        file.write_text(f"{name}: {value}\n")
        said = refusal_of("--config", str(file))
        assert said.startswith(f"{file}: "), (name, value)
        assert name in said or "without & * !" in said, (name, value)
        assert re.search("allowed: |Expected |no value|Exceeds|beyond|without", said), (name, value)
        tried += 1
        if HINTS[name] in (int, float):
            assert re.search(f"^command line: .*{name}", refusal_of(f"--{name}={value}"))
            tried += 1
    for content, reason in FILES.values():
        file.write_bytes(content)
        said = refusal_of("--config", str(file))
        assert said.startswith(f"{file}: "), reason
        assert reason in said
    for path in ("", str(tmp_path), "/dev/zero", "/dev/null", "a" * 300, "gone.yaml"):
        assert refusal_of("--config", path)
    record_property("bad settings tried", tried + len(FILES) + 6)
    assert not Path("owned").exists()


@pytest.mark.parametrize("kind", ["a bomb", "a key twice", "Latin-1", "/dev/zero", "/"])
def test_a_wrong_file_of_settings_ends_each_script_at_once(tmp_path: Path, kind: str) -> None:
    content, said = FILES.get(kind, (b"", "no regular file"))
    (tmp_path / "mine.yaml").write_bytes(content)
    begun = time.monotonic()
    done = run_script(tmp_path, "train.py", "--config", kind if kind[0] == "/" else "mine.yaml")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert said in done.stderr
    assert time.monotonic() - begun < 10
