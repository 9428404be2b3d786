"""export.py: its file says of films what PyTorch says, to programs that know only the file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession, SessionOptions
from scipy.special import expit

import export
import infer
import train
from fracture import load_model
from fracture.data.images import read_grey
from tests.conftest import ROOT, Capture, Patch, run_expecting_error, run_process, slow

SIZES = [(373, 454), (90, 77), (901, 300), (1, 1)]  # width and height; the networks see 224 and 320
PAGE = (ROOT / "docs/inference.md").read_text()
SNIPPET = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


def exported(run: str, capsys: Capture) -> InferenceSession:
    """The exported run, after it was compared with PyTorch on films of several sizes."""
    export.main(["--run", run])
    assert "\nmodel.onnx: " in capsys.readouterr().out
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session, model = InferenceSession("model.onnx", options), load_model(run)
    drawn = [read_grey(path) for path in sorted(Path("data/split/test/Fractured").iterdir())[:2]]
    for size in SIZES:
        films = np.stack([np.array(film.resize(size)) for film in drawn])
        found = zip(*session.run(["p", "map"], {"film": films}), strict=True)
        for (p, heat), film in zip(found, model.predict([*films]), strict=True):
            assert p == pytest.approx(film.p, abs=1e-5)
            assert heat == pytest.approx(expit(np.array(film.heat)), abs=1e-4)
    return session


@pytest.mark.usefixtures("project")
def test_a_fine_tuned_model_is_used_as_the_page_shows(capsys: Capture) -> None:
    session = exported("pretrained", capsys)
    about = session.get_modelmeta().custom_metadata_map
    assert "not a medical device" in about["card"]
    assert json.loads(about["classes"]) == ["Fractured", "Non_fractured"]
    classifier = load_model().classifier
    assert json.loads(about["thresholds"]) == classifier.thresholds
    assert json.loads(about["tested"]) == classifier.tested
    assert json.loads(about["recipe"]) == classifier.spec.cache_key()
    assert len(about["manifest_sha256"]) == 64
    assert str(ROOT).encode() not in Path("model.onnx").read_bytes()
    films = sorted(str(path) for path in Path("data/split/test").rglob("*.jpg"))
    command = [sys.executable, "-c", SNIPPET, *films]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    infer.main([*films, "--run", "pretrained"])
    told = capsys.readouterr().out
    for line in done.stdout.splitlines():
        p, is_positive, path = line.split()
        decision = classifier.classes[0 if is_positive == "True" else 1]
        assert re.search(rf"^{p} +{decision} .*{path}\b", told, re.MULTILINE)
    assert done.stderr == ""


@pytest.mark.usefixtures("project")
def test_a_frozen_network_of_timm_can_be_exported(capsys: Capture) -> None:
    train.main(["--backbone=timm/test_resnet", "--weights=none", "--epochs=1", "--run=small"])
    exported("small", capsys)


@slow
@pytest.mark.usefixtures("project")
def test_a_frozen_efficientnet_can_be_exported(capsys: Capture) -> None:
    exported("first", capsys)


def test_what_cannot_be_written_is_said_before_torch_is_imported(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    for out in ("model.pt", "gone/model.onnx"):
        done = run_process(tmp_path, "export.py", "--out", out)
        told = f"export.py: --out {out}: must end in .onnx, in an existing folder\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    monkeypatch.setattr(export, "find_spec", lambda name: name == "onnx")
    line = run_expecting_error(export.arguments)
    hint = "pip install -r requirements-onnx.txt"
    assert line == f"not installed: onnxscript; {hint}"
