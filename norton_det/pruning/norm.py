"""The L2 norm of the filters, for layers without factors."""

from collections.abc import Sequence

from torch import Generator, Tensor

from norton_det.pruning.base import Filters, norms, register_score


def filter_norm(writers: Sequence[Filters], generator: Generator) -> Tensor:
    """Return the L2 norm of each channel's filters in all writers together, float64 of shape (O,).

    Example:
        >>> import torch
        >>> filter_norm([Filters(torch.tensor([[3.0], [0.0]])), Filters(torch.tensor([[4.0], [1.0]]))], Generator())
        tensor([5., 1.], dtype=torch.float64)
    """
    return norms(writers)


register_score("norm", filter_norm)
