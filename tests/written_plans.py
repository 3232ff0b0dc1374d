"""Plans as text, small networks written in one line, and networks in which channels are masked."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import norton_det as nd


class Net(nn.Module):
    """A network of named layers, run by a function of the network and its arguments."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def written(plan: nd.ChannelPlan) -> set[str]:
    """Return one line for each layer: ``fc: a b*49 -> c``; ``bn = a`` in place; ``out: c`` for fixed outputs."""
    lines = set()
    for layer in plan.layers:
        reads = " ".join(layer.reads) + (f"*{layer.spatial}" if layer.spatial > 1 else "")
        arrow = f" -> {layer.writes}" if layer.writes else ""
        lines.add(f"{layer.name} = {reads}" if layer.in_place else f"{layer.name}: {reads}{arrow}")
    return lines


def renamed(plan: nd.ChannelPlan) -> tuple[dict[str, int], set[str], set[str]]:
    """Return widths, lines and separate groups of a plan, each group named after the first of its writers in order."""
    names = {group: min(plan.writers(group)) for group in plan.widths}
    layers = tuple(
        nd.Layer(
            layer.name,
            tuple(names[group] for group in layer.reads),
            names[layer.writes] if layer.writes else None,
            layer.in_place,
            layer.spatial,
        )
        for layer in plan.layers
    )
    widths = {names[group]: width for group, width in plan.widths.items()}
    lines = written(nd.ChannelPlan(widths, layers))
    assert len(lines) == len(layers)
    return widths, lines, {names[group] for group in plan.separate}


def random_kept(plan: nd.ChannelPlan, seed: int) -> dict[str, Tensor]:
    """Choose at random how many and which channels of each group are kept."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group, width in plan.widths.items():
        count = int(torch.randint(max(1, width // 4), width + 1, (), generator=generator))
        kept[group] = torch.randperm(width, generator=generator)[:count].sort().values
    return kept


def mask_outputs(net: nn.Module, plan: nd.ChannelPlan, kept: Mapping[str, Tensor]) -> None:
    """Zero the channels that are not kept in the outputs of all layers that write or normalise them."""
    for layer in plan.layers:
        module = net.get_submodule(layer.name)
        groups = layer.reads if layer.in_place else (layer.writes,) if layer.writes else ()
        if not groups or (layer.in_place and any(True for _ in module.children())):  # a record: it computes nothing
            continue
        mask = torch.cat([torch.zeros(plan.widths[group]).index_fill(0, kept[group], 1) for group in groups])
        mask = mask.repeat_interleave(layer.spatial if layer.in_place else 1)

        def hook(module: nn.Module, args: Any, out: Tensor, mask: Tensor = mask) -> Tensor:
            dim = out.dim() - 1 if isinstance(module, nn.Linear) else 1
            return out * mask.to(out).view([-1 if d == dim else 1 for d in range(out.dim())])

        module.register_forward_hook(hook)
