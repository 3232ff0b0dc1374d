"""Dense networks in which dropped channels are zero: what a pruned network must compute."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import NORMS
from norton_det.channels.plan import ChannelPlan


def random_kept(plan: ChannelPlan, generator: torch.Generator) -> dict[str, Tensor]:
    """Return channels to keep of every group, at least a quarter."""
    kept = {}
    for group, width in plan.widths.items():
        keep = int(torch.randint(max(1, width // 4), width + 1, (), generator=generator))
        kept[group] = torch.randperm(width, generator=generator)[:keep].sort().values
    return kept


@contextmanager
def masked(net: nn.Module, plan: ChannelPlan, kept: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Zero the dropped channels at the output of every layer that writes or normalises a group, within the block."""
    handles = []
    for layer in plan.layers:
        module = net.get_submodule(layer.name)
        groups = (layer.writes,) if layer.writes else layer.reads if isinstance(module, NORMS) else ()
        if groups:
            flags = torch.cat([torch.zeros(plan.widths[g]).index_fill_(0, kept[g], 1) for g in groups])

            def hook(module: nn.Module, args: Any, output: Tensor, flags: Tensor = flags) -> Tensor:
                return output * flags.view(-1, *(1,) * (output.dim() - 2))

            handles.append(module.register_forward_hook(hook))
    yield net
    for handle in handles:
        handle.remove()
