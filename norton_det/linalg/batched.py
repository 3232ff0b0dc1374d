"""Sums over many small matrices that lie side by side along the last dimensions: vector instructions on all at once."""

from torch import Tensor


def contract(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum over p of ``left[p] * right[p]``, which broadcast, without all products in memory."""
    total = left[0] * right[0]
    for first, second in zip(left[1:], right[1:], strict=True):
        total.addcmul_(first, second)
    return total
