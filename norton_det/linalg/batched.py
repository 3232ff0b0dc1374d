"""Products of many small matrices that lie side by side along the last dimensions, in vector instructions."""

from torch import Tensor


def contract(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum over p of ``left[p] * right[p]``, which broadcast, without all products in memory.

    Example:
        >>> import torch
        >>> contract(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        tensor([13., 16.])
    """
    total = left[0] * right[0]
    for first, second in zip(left[1:], right[1:], strict=True):
        total.addcmul_(first, second)
    return total
