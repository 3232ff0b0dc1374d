"""Whether a changed network computes what the given one does, and which of its changes keep it so."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_det.errors import UsageError
from norton_det.models.tasks import task_of
from norton_det.runtime.device import full_precision
from norton_det.runtime.modes import copied
from norton_det.runtime.outputs import opened, relative_difference, tolerance_of

T = TypeVar("T")


class Reference:
    """The outputs of a network on an example, for networks that should be equal to it.

    Networks are run as copies: what they keep from one run to the next stays as it was. They are run in full float32:
    in a GPU's TF32 even two kernels of one convolution differ.

    Args:
        net: in evaluation mode.
        arguments: of the network.

    Attributes:
        problem: why no network can be compared with this one: its own outputs differ from run to run, or hold no
            tensor. None for most.

    Raises:
        UsageError: the network does not run on the arguments.
    """

    def __init__(self, net: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._task, self._arguments = task_of(net), arguments
        try:
            self._expected, self._inner = self._run(net)
        except Exception as error:  # whatever a network's own code raises
            raise UsageError(f"model does not run on example_inputs: {type(error).__name__}: {error}") from error
        self.tolerance = tolerance_of(self._expected)
        noise = self.difference(net)
        self.problem = None if noise <= self.tolerance else f"two runs of the given network differ by {noise:.1e}"
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(opened(self._expected))):
            self.problem = "its outputs hold no tensor to compare"

    def difference(self, net: nn.Module) -> float:
        """Return the relative difference of the outputs of ``net``; infinity if it does not run.

        Where the outputs hold whole numbers or differ in shape, as chosen boxes do, what the network's direct
        submodules return before is compared instead.
        """
        try:
            outputs, inner = self._run(net)
        except Exception:  # its own code may read what was changed
            return float("inf")
        difference = relative_difference(outputs, self._expected)
        if difference <= self.tolerance or not _is_chosen(self._expected):
            return difference
        return relative_difference(inner, self._inner)

    def keeps(self, changes: Sequence[T], changed: Callable[[list[T]], nn.Module]) -> list[T]:
        """Return the changes that keep the outputs; none where there is a problem.

        Args:
            changes: that may be made, in any combination.
            changed: returns a network with these changes.
        """
        if self.problem:
            return []
        return largest_equal(changes, lambda part: self.difference(changed(part)) <= self.tolerance)

    def _run(self, net: nn.Module) -> tuple[Any, list[Any]]:
        inner: list[Any] = []
        net = copied(net)
        with torch.no_grad(), full_precision():
            for child in net.children():
                child.register_forward_hook(lambda m, args, out: inner.append(out))
            outputs = self._task.compared(net, *copy.deepcopy(self._arguments))
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
    tensors = (leaf for leaf in tree_leaves(opened(outputs)) if isinstance(leaf, Tensor))
    return any(not (tensor.dtype.is_floating_point or tensor.dtype.is_complex) for tensor in tensors)
