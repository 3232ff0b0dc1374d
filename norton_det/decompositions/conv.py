"""Helpers for the layers that are decomposed: geometry, copies with other weights, sums of terms."""

from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from norton_det.errors import DataError, UsageError

Size = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
DenseLayer = nn.Conv2d | nn.Linear
"""What a decomposition may replace."""
LayerT = TypeVar("LayerT", nn.Conv2d, nn.Linear)


def pair(value: int | tuple[int, ...]) -> Size:
    """Return a number for both spatial dimensions as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def check_ungrouped(layer: DenseLayer, block: str) -> None:
    """Check that a layer is no grouped convolution; ``block`` is what it would become.

    Raises:
        UsageError: it is.
    """
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise UsageError(f"a convolution with groups={layer.groups} has no {block} block; expected groups=1")


def as_convolution(layer: DenseLayer, block: str) -> nn.Conv2d:
    """Return an ungrouped convolution as it is; ``block`` is what it would become.

    Raises:
        UsageError: the layer is linear, or grouped.
    """
    if not isinstance(layer, nn.Conv2d):
        raise UsageError(f"a {type(layer).__name__} layer has no {block} block; expected a convolution, or method svd")
    check_ungrouped(layer, block)
    return layer


def kernel_of(layer: DenseLayer) -> Size:
    """Return (Kh, Kw); (1, 1) of a linear layer."""
    return pair(layer.kernel_size) if isinstance(layer, nn.Conv2d) else (1, 1)


def not_pointwise(layer: DenseLayer) -> str | None:
    """Return why a layer is neither linear nor an ungrouped 1x1 convolution; None where it is one of them."""
    kh, kw = kernel_of(layer)
    return _grouped(layer) or (None if (kh, kw) == (1, 1) else f"{kh}x{kw}")


def not_spatial(layer: DenseLayer) -> str | None:
    """Return why a layer is no ungrouped convolution with a kernel above 1x1; None where it is one."""
    pointwise = "1x1" if isinstance(layer, nn.Conv2d) else "linear"
    return _grouped(layer) or (pointwise if kernel_of(layer) == (1, 1) else None)


def _grouped(layer: DenseLayer) -> str | None:
    if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
        return None
    return "depthwise" if layer.groups == layer.in_channels else f"grouped (groups={layer.groups})"


def check_finite(filters: Tensor, name: str) -> None:
    """Check that all values of each filter, (O, ...), are finite.

    Raises:
        DataError: some are not; the message starts with ``name`` and lists the filters.
    """
    finite = filters.isfinite().reshape(len(filters), -1).all(1)
    if not finite.all():
        raise DataError(f"{name} of filters {(~finite).nonzero().flatten().tolist()} are not finite")


def geometry(layer: DenseLayer) -> dict[str, Any]:
    """Return stride, padding, dilation and padding mode of a convolution, as arguments of another; none if linear."""
    names = ("stride", "padding", "dilation", "padding_mode") if isinstance(layer, nn.Conv2d) else ()
    return {name: getattr(layer, name) for name in names}


def plain(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a copy of a convolution."""
    return like_conv(conv, conv.weight, conv.bias, conv.groups)


def like_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    """Return a convolution with the geometry of ``conv`` and this weight (O, I / groups, Kh, Kw)."""
    return conv_with(weight, bias, groups, **geometry(conv))


def conv_with(weight: Tensor, bias: Tensor | None, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """Return a convolution with this weight (O, I / groups, Kh, Kw), its device and dtype, and this geometry."""
    outputs, inputs, kh, kw = weight.shape
    options = {"groups": groups, "bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    conv: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs * groups, outputs, (kh, kw), **geometry, **options)
    return _filled(conv, weight, bias)


def like_layer(layer: DenseLayer, weight: Tensor, bias: Tensor | None) -> DenseLayer:
    """Return a layer of the kind and geometry of ``layer``, which is not grouped, with this weight and bias."""
    if isinstance(layer, nn.Conv2d):
        return like_conv(layer, weight, bias, 1)
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), **options)
    return _filled(linear, weight, bias)


def _filled(layer: LayerT, weight: Tensor, bias: Tensor | None) -> LayerT:
    layer.weight.detach().copy_(weight.detach())
    if bias is not None and layer.bias is not None:
        layer.bias.detach().copy_(bias.detach())
    return layer


def sum_terms(x: Tensor, rank: int) -> Tensor:
    """Add up the terms of filters: (N, R * O, H, W), term by term, -> (N, O, H, W).

    In this order what is added lies together in every memory format; filter by filter it does not in channels_last.
    """
    terms = x.chunk(rank, -3)
    if rank == 1:
        return terms[0]
    total = terms[0] + terms[1]
    for i in range(2, rank):
        total += terms[i]
    return total
