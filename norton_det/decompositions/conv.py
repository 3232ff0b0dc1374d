"""Helpers for convolutions: geometry, copies with other weights, sums of terms."""

from typing import Any, Literal

from torch import Tensor, nn

from norton_det.errors import DataError, UsageError

Size = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def pair(value: int | tuple[int, ...]) -> Size:
    """Return a number for both spatial dimensions as (vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def check_ungrouped(conv: nn.Conv2d, block: str) -> None:
    """Check that a convolution is not grouped; ``block`` is what it would become.

    Raises:
        UsageError: it is.
    """
    if conv.groups != 1:
        raise UsageError(f"a convolution with groups={conv.groups} has no {block} block; expected groups=1")


def check_finite(filters: Tensor, name: str) -> None:
    """Check that all values of each filter, (O, ...), are finite.

    Raises:
        DataError: some are not; the message starts with ``name`` and lists the filters.
    """
    finite = filters.isfinite().reshape(len(filters), -1).all(1)
    if not finite.all():
        raise DataError(f"{name} of filters {(~finite).nonzero().flatten().tolist()} are not finite")


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """Return stride, padding, dilation and padding mode of a convolution, as arguments of another."""
    return {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")}


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
    conv.weight.detach().copy_(weight.detach())
    if bias is not None and conv.bias is not None:
        conv.bias.detach().copy_(bias.detach())
    return conv


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
