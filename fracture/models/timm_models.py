"""timm's convolutional networks and transformers as backbones. The package is optional."""

from functools import cache, partial
from typing import Any

import torch
from torch import nn

from fracture.cli import InputError, one_line
from fracture.models.architecture import Architecture
from fracture.models.weights import timm_config


@cache
def timm_architecture(name: str) -> Architecture:
    """How to build timm/NAME.

    Raises:
        InputError: timm is not installed, or has no such model.
    """
    config = timm_config(name)
    import timm

    create: Any = partial(timm.create_model, name.removeprefix("timm/"), num_classes=0)
    with torch.device("meta"):  # neither memory nor time for weights
        width = create().num_features

    def build(image_size: int) -> nn.Module:
        # Networks with position embeddings need the image size.
        size = {"img_size": image_size} if config.fixed_input_size else {}
        try:
            network = create(**size).eval()
            feature_maps(network, torch.zeros(1, 3, image_size, image_size))
        except Exception as error:  # each family of networks has its own
            reason = one_line(error, 100)
            raise InputError(f"{name} has no maps of {image_size} pixels: {reason}") from error
        return network

    def adapt(network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
        # timm's function stretches the embeddings of places to the network's image size.
        module = timm.model_entrypoint(name.removeprefix("timm/")).__globals__
        state = module.get("checkpoint_filter_fn", lambda state, _: state)(state, network)
        return {key: state[key] for key in state.keys() & network.state_dict().keys()}

    look = {"normalisation": (config.mean, config.std), "image_size": config.input_size[-1]}
    return Architecture(build, width, feature_maps, adapt=adapt, **look)


def feature_maps(network: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, H) floats to (N, width, h, h), also from tokens and from (N, h, h, width).

    Not timm's `forward_intermediates`: it leaves out an EfficientNet's last convolution.
    """
    maps = network.forward_features(pixels)
    if maps.ndim == 3:  # tokens; those of a class or a register are not places of the image
        side = int((maps.shape[1] - getattr(network, "num_prefix_tokens", 0)) ** 0.5)
        return maps[:, -(side**2) :].mT.unflatten(2, (side, side))
    return maps if maps.shape[1] == network.num_features else maps.movedim(3, 1)
