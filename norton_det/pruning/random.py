"""Random choice: the baseline of every criterion."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from norton_det.pruning.base import Filters, register_score


def random_score(writers: Sequence[Filters], generator: Generator) -> Tensor:
    """Return a uniform random score for each filter, of shape (O,).

    Example:
        >>> random_score([Filters(torch.ones(4, 2))], Generator().manual_seed(0)).shape
        torch.Size([4])
    """
    return torch.rand(len(writers[0].weight), generator=generator)


register_score("random", random_score)
