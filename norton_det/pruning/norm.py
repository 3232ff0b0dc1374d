"""The L2 norm of the filters, for layers without factors."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from norton_det.pruning.base import Filters, register_score


def filter_norm(writers: Sequence[Filters], generator: Generator) -> Tensor:
    """Return the L2 norm of each channel's filters in all writers together, float64 of shape (O,).

    Example:
        >>> filter_norm([Filters(torch.tensor([[3.0], [0.0]])), Filters(torch.tensor([[4.0], [1.0]]))], Generator())
        tensor([5., 1.], dtype=torch.float64)
    """
    squares = [writer.weight.detach().to("cpu", torch.float64).flatten(1).square().sum(1) for writer in writers]
    return torch.stack(squares).sum(0).sqrt()


register_score("norm", filter_norm)
