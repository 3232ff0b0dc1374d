"""Chance: what any criterion has to beat."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from norton_det.pruning.base import Filters, register_score


def chance(writers: Sequence[Filters], generator: Generator) -> Tensor:
    """Return a uniform random score for each filter, of shape (O,)."""
    return torch.rand(len(writers[0].weight), generator=generator)


register_score("random", chance)
