"""Which channels of a group stay: a criterion's choice among the filters that write it."""

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from norton_det.channels.narrow import ChannelMap
from norton_det.decompositions import Decomposition
from norton_det.pruning import CRITERIA, Filters


def filters_of(module: nn.Module) -> Filters | None:
    """Return the filters of a layer as criteria take them, None for a layer without weights."""
    if isinstance(module, ChannelMap):
        return None
    if isinstance(module, Decomposition):
        return Filters(module.to_dense().weight, module.factors())
    assert isinstance(module.weight, Tensor)
    return Filters(module.weight)


def select_channels(
    writers: Sequence[nn.Module], keep: int, criterion: str, generator: Generator
) -> tuple[Tensor, str]:
    """Choose the channels of a group that stay.

    Args:
        writers: the layers that write it.
        keep: how many stay.
        criterion: registered name. Where it needs factors, and a writer has none of its own for each filter (a dense
            layer, a Tucker-2 block), it is ``norm``.
        generator: for chance alone.

    Returns:
        The channels, int64 of shape (keep,), ascending; and the criterion by which they were chosen.
    """
    filters = [found for writer in writers if (found := filters_of(writer)) is not None]
    fits = not CRITERIA[criterion].needs_factors or all(own.factors is not None for own in filters)
    used = criterion if fits else "norm"
    return CRITERIA[used].select(filters, keep, generator), used
