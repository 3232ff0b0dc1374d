"""Check a channel plan by narrowing: the narrowed network must compute what the network does without these channels."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from norton_det.channels.narrow import columns_of, narrow_network
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.errors import UsageError

_PARTS = (4, 16, 1024)  # one channel of so many is dropped: fewer, if a detector finds nothing otherwise
_NOISE = 0.02  # relative: so that zeros and ones of an initialisation hide nothing


class NarrowingCheck:
    """A network on an example, in float64 if it can, which is narrowed by a plan and compared with itself.

    Args:
        net: the network. It is copied.
        example: its arguments.

    Raises:
        UsageError: the network returns no tensors, some that are not finite, or objects that are not looked into.
    """

    def __init__(self, net: nn.Module, example: tuple[Any, ...]) -> None:
        self._net, self._example = copy.deepcopy(net).double().eval(), copied(example, torch.float64)
        try:
            self._run(self._net)
        except RuntimeError:  # it makes tensors of another type
            self._net, self._example = copy.deepcopy(net).eval(), example
        _perturb(self._net)

    def failing(self, plan: ChannelPlan) -> dict[str, str]:
        """Return the groups with which the narrowed network does not compute the same, each with the reason.

        All groups are narrowed at once; each by itself only if this fails.

        Raises:
            UsageError: a layer that reads narrowed channels does not run in the narrowed network.
        """
        failure = self._failure(plan, plan.widths)
        if failure is None:
            return {}
        alone = {group: self._failure(plan, [group]) for group in plan.widths}
        found = {group: reason for group, reason in alone.items() if reason}
        return found or dict.fromkeys(plan.widths, failure)

    def _failure(self, plan: ChannelPlan, groups: Iterable[str]) -> str | None:
        """Return what is wrong when some groups are narrowed, None if nothing is."""
        kept, expected = self._without(plan, groups)
        net = copy.deepcopy(self._net)
        try:
            narrow_network(net, plan, kept)
            got = self._run(net)
        except Exception as error:  # whatever the code of a network may raise
            return f"narrowed, the network fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
        precision = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
        tolerance = torch.finfo(precision).eps ** 0.5
        same = len(got) == len(expected) and all(_close(*pair, tolerance) for pair in zip(got, expected, strict=True))
        return None if same else "narrowed, the network computes something else"

    def _without(self, plan: ChannelPlan, groups: Iterable[str]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Choose which channels are kept, and return the outputs when no layer reads the others."""
        silent: set[str] = set()
        for part in _PARTS:
            kept = _kept({group: plan.widths[group] for group in groups}, part)
            handles, silent = _mask_reads(self._net, plan, kept)
            try:
                outputs = self._run(self._net)
            finally:
                for handle in handles:
                    handle.remove()
            if not silent:
                return kept, outputs
        raise UsageError(
            f"layers did not run once the network was narrowed: {', '.join(sorted(silent)[:5])}; expected an example "
            "in which a detector finds more objects, or a lower score threshold"
        )

    def _run(self, net: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            leaves = tree_leaves(net(*copied(self._example)))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | float | int | str | None)]
        found = ", ".join(others) if outputs else "no tensors"
        if outputs and not all(bool(output.isfinite().all()) for output in outputs):
            found = "values that are not finite"
        if found:
            raise UsageError(f"{type(net).__name__} returns {found}; expected finite tensors in lists, tuples or dicts")
        return outputs


def _perturb(net: nn.Module) -> None:
    """Change all parameters and buffers a little."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1:
            noise = torch.rand(tensor.shape, generator=generator).to(tensor)
            tensor.data += _NOISE * (float(tensor.detach().abs().mean()) or 1.0) * noise


def _kept(widths: Mapping[str, int], part: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    orders = {group: torch.randperm(width, generator=generator) for group, width in widths.items()}
    return {group: order[max(1, len(order) // part) :].sort().values for group, order in orders.items()}


def _mask_reads(net: nn.Module, plan: ChannelPlan, kept: Mapping[str, Tensor]) -> tuple[list[Any], set[str]]:
    """Make layers read zeros for the channels that are not kept; return handles, and the layers that have not run."""
    handles: list[Any] = []
    silent: set[str] = set()
    for layer in plan.layers:
        columns = columns_of(layer, plan.widths, kept)
        if columns is not None and not layer.in_place:
            silent.add(layer.name)
            handles.append(net.get_submodule(layer.name).register_forward_pre_hook(_masking(layer, columns, silent)))
    return handles, silent


def _masking(layer: Layer, columns: Tensor, silent: set[str]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (given,) = args
        dim = _channel_dim(module)
        if given.numel():
            silent.discard(layer.name)
        mask = torch.zeros(given.shape[dim], dtype=given.dtype, device=given.device)
        mask[columns.to(given.device)] = 1
        return (given * mask.view([-1 if d == dim % given.dim() else 1 for d in range(given.dim())]),)

    return hook


def _channel_dim(module: nn.Module) -> int:
    """Return the dimension of the channels in a layer's input, which need not be a batch for a convolution."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return -1 - len(module.kernel_size)
    return -1 if isinstance(module, nn.Linear) else 1


def copied(tree: Any, dtype: torch.dtype | None = None) -> Any:
    """Return nested lists, tuples and dictionaries with copies of their tensors, those of real numbers as ``dtype``."""

    def copy_of(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(dtype, copy=True) if dtype and leaf.is_floating_point() else leaf.clone()

    return tree_map(copy_of, tree)


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    if got.shape != expected.shape or not got.is_floating_point():
        return got.equal(expected)
    return got.numel() == 0 or bool((got - expected).abs().max() <= tolerance * expected.abs().max())
