"""Bad splits, checkpoints and histories end each script in one line and status 2."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fracture.data.manifest import Row, read_manifest, write_manifest
from fracture.runs.checkpoint import DECISION, KINDS
from tests.conftest import LITE, Refusal

Count = Callable[[str, object], None]
Content = dict[str, Any]

RUN = ("--run", "bad", "--wandb_mode", "disabled")


@pytest.fixture
def place(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the drawn data's split and cache, and a run that the test damages."""
    (tmp_path / "cache").symlink_to(workplace / "cache")
    shutil.copytree(workplace / "data", tmp_path / "data", copy_function=os.link)
    for name in ("best.pt", "last.pt", "history.jsonl", "config.yaml"):
        (tmp_path / "runs" / "bad").mkdir(parents=True, exist_ok=True)
        shutil.copy(workplace / "runs" / "first" / name, tmp_path / "runs" / "bad" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(content: Content, path: str, value: object) -> Content:
    """The checkpoint with another value at a path like "recipe/weights"."""
    key, _, rest = path.partition("/")
    return content | {key: changed(content[key], rest, value) if rest else value}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


NAN, WIDE = torch.full((2, 1280), torch.nan), torch.ones(2, 2304)
UNFIT: list[tuple[str, object, str]] = [  # path in best.pt, value, what is said
    ("head/linear.weight", NAN, "not finite"),
    ("head/linear.bias", torch.tensor([0.0, torch.inf]), "not finite"),
    ("head/linear.weight", WIDE, "size mismatch"),
    ("head/linear.weight", "text", "linear.weight"),
    ("head", {"fc.weight": WIDE}, "fc.weight"),
    ("head", {}, "Missing key"),
    *(("temperature", value, "out of range") for value in (0.0, -1.0, torch.nan, torch.inf)),
    ("thresholds/protocol", "0.5", "of another program"),
    ("thresholds/youden", 2.0, "out of range"),
    ("thresholds/sensitivity90", torch.nan, "out of range"),
    ("thresholds", {"protocol": 0.5}, "of another program"),
    ("classes", ["Fractured"], "of another program"),
    ("classes", ["Fractured", "Fractured"], "one name"),
    ("classes", ["Fractured", "Non_fractured", "Unsure"], "of another program"),
    ("positive_class", "Broken", "of another program"),
    ("settings", {}, "of another program"),
    ("settings/weights", 7, "of another program"),
    ("recipe", {}, "of another program"),
    ("recipe/backbone", "resnet50", ""),
    ("recipe/backbone", "efficientnet-b0", ""),
    ("recipe/image_size", "large", "of another program"),
    ("recipe/fit", "stretch", "out of range"),
    ("recipe/weights", "sha256:-", "weights"),
    ("recipe/preprocessing", 0, "preprocessing"),
]


def bad_files(content: Content) -> Iterator[bytes]:
    """What lies about under the name of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = buffer.getvalue()
    yield from (b"", b"text\n" * 99, random.Random(1).randbytes(9999), bytes(9999), whole[:5000])
    yield from (whole[: len(whole) // 2], whole[:-1], pickle.dumps({"head": 1}))
    for protocol in (0, 2, 4):
        yield pickle.dumps({"head": Malicious()}, protocol)
    for other in ({"conv.weight": torch.ones(3)}, torch.ones(3), [1, 2], {"head": Malicious()}, {}):
        buffer = io.BytesIO()
        torch.save(other, buffer)
        yield buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../best/data.pkl", pickle.dumps(Malicious()))
    yield buffer.getvalue()


def test_no_other_checkpoint_predicts(
    place: Path, refusal: Refusal, record_property: Count
) -> None:
    best, film = place / "runs/bad/best.pt", next((place / "data").glob("split/test/*/*"))
    content: Content = torch.load(best, weights_only=True)
    kinds = KINDS | DECISION
    tries = [*UNFIT, *((key, value, key) for key in kinds for value in (None, torch.ones(1)))]
    for path, value, said in tries:
        torch.save(changed(content, path, value), best)
        line = refusal("infer.py", str(film), *RUN)
        assert said in line, path
        assert "best.pt" in line or "recipe" in path, line
    for number, damaged in enumerate(bad_files(content)):
        best.write_bytes(damaged)
        assert "runs/bad/best.pt: " in refusal("infer.py", str(film), *RUN), number
    assert not (place / "owned").exists()
    record_property("bad checkpoints tried", len(tries) + number + 1)


def test_no_other_checkpoint_is_resumed(place: Path, refusal: Refusal) -> None:
    last, resume = place / "runs/bad/last.pt", ("--resume", "bad", "--wandb_mode", "disabled")
    content: Content = torch.load(last, weights_only=True)
    small = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    for path, value in (
        *(("head", {}), ("head/linear.weight", WIDE), ("best", {}), ("optimizer", {})),
        *(("optimizer/state", {0: small, 1: small}), ("optimizer/param_groups", [])),
        *(("settings", {}), ("recipe", {}), ("classes", []), ("epoch", "three")),
    ):
        torch.save(changed(content, path, value), last)
        assert "runs/bad" in refusal("train.py", *resume), path
    for damaged in bad_files(content):
        last.write_bytes(damaged)
        assert "runs/bad/last.pt: " in refusal("train.py", *resume)
    last.unlink()
    settings = place / "runs/bad/config.yaml"
    (place / "own.yaml").write_text("backbone: efficientnet-lite0")
    for text in (b"", b"\xff\xfe", b"lr: 0.1\nlr: 0.2\n", b"settings:\n  lr: 0.1\n", b"lr: fast\n"):
        settings.write_bytes(text)
        assert "runs/bad/config.yaml: " in refusal("train.py", *resume)
        assert "runs/bad" in refusal("train.py", *resume, "--config", "own.yaml")


def test_a_tested_run_needs_its_history_its_split_and_both_classes(
    place: Path, refusal: Refusal
) -> None:
    history, split = place / "runs/bad/history.jsonl", place / "data/split"
    kept = history.read_text()
    lines = ("\x00", "not json", "[]", "7", "{}", '{"epoch": 1}', kept.replace("0.", "NaN, 0.", 1))
    for text in (*(f"{line}\n" for line in lines), kept + "{", ""):
        history.write_text(text)
        assert "runs/bad/history.jsonl: " in refusal("infer.py", *RUN), text
    history.write_bytes(b"\xff" * 99)
    assert "runs/bad/history.jsonl: " in refusal("infer.py", *RUN)
    history.write_text(kept)
    boxes = place / "FracAtlas/Annotations/COCO JSON/COCO_fracture_masks.json"
    boxes.parent.mkdir(parents=True)
    boxes.write_text('{"images": [], "annotations": [{"image_id": 1}]}')
    for text, said in (
        (f"data_root: {place}/FracAtlas\n", str(boxes)),
        ("seed: 1\n", "config.yaml"),
    ):
        (split / "config.yaml").unlink()  # a hard link
        (split / "config.yaml").write_text(text)
        assert said in refusal("infer.py", *RUN)
    (place / "runs/bad/test").mkdir()
    (place / "runs/bad/test/metrics.json").write_text("{")
    assert "runs/bad/test: damaged" in refusal("infer.py", "--compare", "bad", "bad")
    content = torch.load(place / "runs/bad/best.pt", weights_only=True)
    shutil.rmtree(split / "test" / "Fractured")
    rows = [r for r in read_manifest(split)[0] if (r.split, r.label) != ("test", "Fractured")]
    rewrite(split, rows)
    sha = read_manifest(split)[1]
    torch.save(content | {"manifest_sha256": sha}, place / "runs/bad/best.pt")
    assert "test has no readable image of Fractured" in refusal("infer.py", *RUN)


def rewrite(split: Path, rows: list[Row]) -> None:
    for name in ("manifest.csv", "manifest.csv.sha256"):
        (split / name).unlink()  # a hard link
    write_manifest(split, rows)


def test_no_wrong_manifest_is_trained_on(place: Path, refusal: Refusal) -> None:
    split, train = place / "data/split", ("train.py", *LITE, "--wandb_mode", "disabled")
    rows = read_manifest(split)[0]
    index = next(i for i, row in enumerate(rows) if row.split == "train")
    out = next(i for i, row in enumerate(rows) if row.split == "excluded")
    for at, key, value in (
        *(
            (index, "image", name)
            for name in ("../../secret.jpg", "/etc/passwd", "a/../b", "", "\0")
        ),
        *((index, "label", name) for name in ("Unsure", "..", "/", "")),
        *((index, "split", name) for name in ("test", "excluded", "Train", "")),
    ):
        rewrite(
            split, [replace(row, **{key: value}) if i == at else row for i, row in enumerate(rows)]
        )
        assert re.search("manifest.csv|is missing|data/split", refusal(*train)), (key, value)
    rewrite(split, [replace(r, label="Unsure") if i == out else r for i, r in enumerate(rows)])
    assert "two classes are needed" in refusal(*train)
    for text in (b"", b"\xff\xfe\0", b"image,class\n", b"a" * 200_000, b'"' + b"x," * 99):
        (split / "manifest.csv").write_bytes(text)
        assert "manifest.csv" in refusal(*train)
    rewrite(split, [row for row in rows if row.label == "Fractured"])
    assert "is not in manifest.csv" in refusal(*train)
    for name in ("val", "train"):
        shutil.rmtree(split / name / "Fractured")
        rows = [row for row in rows if (row.split, row.label) != (name, "Fractured")]
        rewrite(split, rows)
        assert f"{name} has no readable image of Fractured" in refusal(*train)
    shutil.rmtree(split / "train")
    rewrite(split, [row for row in rows if row.split != "train"])
    assert "train has no readable image of Fractured" in refusal(*train)
