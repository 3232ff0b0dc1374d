"""Where a pass begins: modules that do not run again, as what they returned is kept, or nothing reads it any more.

A network is calibrated in many passes of the images, and each would repeat the one before it but for its last layer.
What a module returned is kept for all images as long as that is not too much; a pass then begins there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norton_det.calibration.lockstep import StoppedError

Outputs = dict[str, list[Tensor]]
"""What modules returned, call by call. A tensor on the meta device has no numbers: nothing reads them any more."""


class Cut(NamedTuple):
    """The modules that a pass does not run.

    Attributes:
        kept: those whose outputs are kept.
        passed: those whose outputs are read by modules alone that do not run either.
    """

    kept: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()

    def of(self, outputs: Mapping[str, Sequence[Tensor]]) -> Outputs:
        """Return the outputs of these modules; of those that are passed without numbers."""
        return {name: list(outputs[name]) for name in self.kept} | {
            name: [output.to("meta") for output in outputs[name]] for name in self.passed
        }


@contextmanager
def returning(net: nn.Module, outputs: Mapping[str, Sequence[Tensor]]) -> Iterator[None]:
    """Let modules return what they returned before, in place of running them; what has no numbers is NaN.

    Their hooks run.
    """
    device = next(net.parameters()).device
    before = {name: vars(net.get_submodule(name)).get("forward") for name in outputs}

    def returned(left: Iterator[Tensor], *_: Any, **__: Any) -> Tensor:
        output = next(left)
        if output.is_meta:
            return torch.full_like(output, float("nan"), device=device)
        return output.clone()  # what follows may change it in place

    try:
        for name, calls in outputs.items():
            vars(net.get_submodule(name))["forward"] = partial(returned, iter(calls))
        yield
    finally:
        for name, forward in before.items():
            if forward is None:
                vars(net.get_submodule(name)).pop("forward", None)
            else:
                vars(net.get_submodule(name))["forward"] = forward


class Recording:
    """The outputs of some modules as a network computes them.

    Args:
        net: the network.
        cut: which modules; of those that are passed, only the shapes.
        calls: how often each of them runs.
        stop: is asked whenever all outputs are there: whether the pass ends.
    """

    def __init__(
        self, net: nn.Module, cut: Cut, calls: Mapping[str, int], stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.outputs: Outputs = {}
        self._net, self._cut, self._stop = net, cut, stop
        self._left = {name: calls[name] for name in (*cut.kept, *cut.passed)}

    @property
    def is_complete(self) -> bool:
        """Whether all outputs are there."""
        return not self._left

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Record within the block."""
        with ExitStack() as hooks:
            for name in self._left:
                module = self._net.get_submodule(name)
                hooks.enter_context(module.register_forward_hook(partial(self._after, name)))
            yield

    def _after(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        passed = name in self._cut.passed
        self.outputs.setdefault(name, []).append(output.to("meta") if passed else output.detach().clone())
        self._left[name] -= 1
        if not self._left[name]:
            del self._left[name]
            if self.is_complete and self._stop():
                raise StoppedError
