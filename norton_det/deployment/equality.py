"""Whether a changed network computes what the given one does, and which of its changes keep it so."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_det.models.tasks import task_of
from norton_det.runtime.outputs import opened, relative_difference, tolerance_of

T = TypeVar("T")


class Reference:
    """The outputs of a network on an example, for networks that should be equal to it.

    Args:
        net: in evaluation mode.
        arguments: of the network.

    Attributes:
        noise: relative difference of two runs of the network itself; 0 for a network without randomness.
    """

    def __init__(self, net: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._task, self._arguments = task_of(net), arguments
        self._expected, self._inner = self._run(net)
        self.tolerance = tolerance_of(self._expected)
        self.noise = self.difference(net)

    def difference(self, net: nn.Module) -> float:
        """Return the relative difference of the outputs of ``net``.

        Where the outputs hold whole numbers or differ in shape, as chosen boxes do, what the network's direct
        submodules return before is compared instead.
        """
        outputs, inner = self._run(net)
        difference = relative_difference(outputs, self._expected)
        if difference <= self.tolerance or not _is_chosen(self._expected):
            return difference
        return relative_difference(inner, self._inner)

    def keeps(self, changes: Sequence[T], changed: Callable[[list[T]], nn.Module]) -> list[T]:
        """Return the changes that keep the outputs; none where the network's own outputs differ from run to run.

        Args:
            changes: that may be made, in any combination.
            changed: returns a network with these changes.
        """
        if self.noise > self.tolerance:
            return []
        return largest_equal(changes, lambda part: self.equals(changed(part)))

    def equals(self, net: nn.Module) -> bool:
        """Tell whether the outputs of ``net`` are equal up to rounding."""
        return self.difference(net) <= self.tolerance

    def _run(self, net: nn.Module) -> tuple[Any, list[Any]]:
        inner: list[Any] = []
        with ExitStack() as hooks, torch.inference_mode():
            for child in net.children():
                hooks.enter_context(child.register_forward_hook(lambda m, args, out: inner.append(out)))
            outputs = self._task.compared(net, *self._arguments)
        return outputs, [out for out in inner if not _is_chosen(out)]


def largest_equal(changes: Sequence[T], equals: Callable[[list[T]], bool]) -> list[T]:
    """Return the changes that keep a network equal, in order; halves are tried where all together do not.

    Args:
        changes: that may be made, in any combination.
        equals: tells whether the network with these changes is equal.

    Example:
        >>> from norton_det.deployment.equality import largest_equal
        >>> largest_equal(range(6), lambda changes: 4 not in changes)
        [0, 1, 2, 3, 5]
    """

    def extended(kept: list[T], part: list[T]) -> list[T]:
        if not part or equals(kept + part):
            return kept + part
        if len(part) == 1:
            return kept
        half = len(part) // 2
        return extended(extended(kept, part[:half]), part[half:])

    return extended([], list(changes))


def _is_chosen(outputs: Any) -> bool:
    """Tell whether outputs hold whole numbers, as labels of boxes that were chosen."""
    return any(isinstance(leaf, Tensor) and not leaf.dtype.is_floating_point for leaf in tree_leaves(opened(outputs)))
