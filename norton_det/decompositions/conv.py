"""Copies of convolutions with other weights."""

from torch import Tensor, nn


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a copy of a convolution."""
    return like_conv(conv, conv.weight, conv.bias, conv.groups)


def like_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    """Return a convolution with the geometry of ``conv`` and this weight (O, I / groups, Kh, Kw)."""
    outputs, inputs, kh, kw = weight.shape
    new: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d,
        inputs * groups,
        outputs,
        (kh, kw),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.weight.copy_(weight)
    if bias is not None and new.bias is not None:
        new.bias.copy_(bias)
    return new
