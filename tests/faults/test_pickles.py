"""Files under the name of a checkpoint or of weights: no code of theirs runs."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import infer
import train
from tests.conftest import LITE, run_expecting_error


class Malicious:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("owned",)


BAD = [pickle.dumps({"head": Malicious()}, protocol) for protocol in (0, 2, 4)]
BAD += [b"", b"text\n" * 99, bytes(9999)]
for content in ({"head": Malicious()}, Malicious(), torch.ones(3), [1, 2], {}, {"head": 1}):
    torch.save(content, buffer := io.BytesIO())
    BAD.append(buffer.getvalue())
BAD.append(BAD[6][:-1])


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_no_code_in_tensors_runs(place: Path, content: bytes, record_property: Callable) -> None:
    for path in (*place.glob("runs/first/*.pt"), place / "own.pth"):
        path.write_bytes(content)
    assert "best.pt" in run_expecting_error(infer.main, "--run", "first")
    assert "last.pt" in run_expecting_error(train.main, "--resume", "first")
    assert "own.pth" in run_expecting_error(train.main, *LITE, "--weights", "own.pth")
    assert not (place / "owned").exists()
    record_property("bad checkpoints tried", 3)
