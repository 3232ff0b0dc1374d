"""The channels of a group that are kept: a criterion's choice among the filters that write it."""

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from norton_det.channels.narrow import ChannelMap
from norton_det.decompositions import Decomposition
from norton_det.pruning import CRITERIA, Filters


def filters_of(module: nn.Module) -> Filters | None:
    """Return the filters of a layer for a criterion, None for a layer without weights."""
    if isinstance(module, ChannelMap):
        return None
    if isinstance(module, Decomposition):
        return Filters(module.to_dense().weight, module.factors())
    assert isinstance(module.weight, Tensor)
    return Filters(module.weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else module.weight)


def select_channels(
    writers: Sequence[nn.Module], keep: int, criterion: str, generator: Generator
) -> tuple[Tensor, str]:
    """Choose the channels of a group that are kept.

    Args:
        writers: the layers that write it.
        keep: number of kept channels.
        criterion: registered name. Where it needs factors and a writer has none for each filter (a dense layer, a
            Tucker-2 block), or the factors do not tell the filters apart (their spaces fill the mode, as those of three
            input channels do from rank 3 on), ``norm`` is used instead.
        generator: for random choices.

    Returns:
        The channels, int64 of shape (keep,), ascending; and the criterion that was used.
    """
    filters = [writer for writer in map(filters_of, writers) if writer is not None]
    used = criterion if CRITERIA[criterion].applies(filters) else "norm"
    return CRITERIA[used].select(filters, keep, generator), used
