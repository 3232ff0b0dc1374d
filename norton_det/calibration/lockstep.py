"""Two networks in lockstep: one runs in a thread and waits at each of its layers until the other has come as far."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module], Any]
"""Runs a network on the images."""


class LayerCall(NamedTuple):
    """The input and the output of a layer in one forward pass."""

    name: str
    inputs: Tensor
    output: Tensor


class StoppedError(Exception):
    """Ends a forward pass early."""


@contextmanager
def observed(net: nn.Module, names: Sequence[str], run: Run) -> Iterator[Iterator[LayerCall]]:
    """Run a network in a thread, from one of its layers to the next as they are asked for.

    Nothing is stored: in memory is what a forward pass holds at that layer.

    Args:
        net: the network, in evaluation mode.
        names: the layers at which it waits.
        run: what it is run on.

    Yields:
        The layers in the order of computation; an error in the network is raised where the next one is asked for.
    """
    results: SimpleQueue[LayerCall | Exception | None] = SimpleQueue()
    go_on: SimpleQueue[bool] = SimpleQueue()

    def wait_at(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            results.put(LayerCall(name, args[0], output))
            if not go_on.get():
                raise StoppedError

        return hook

    def work() -> None:
        try:
            with torch.no_grad():
                run(net)
            results.put(None)
        except StoppedError:
            results.put(None)
        except Exception as error:
            results.put(error)

    def layers() -> Iterator[LayerCall]:
        while (layer_call := results.get()) is not None:
            if isinstance(layer_call, Exception):
                raise layer_call
            yield layer_call
            layer_call = None  # its tensors may be freed while the next layer is computed
            go_on.put(True)

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(net.get_submodule(name).register_forward_hook(wait_at(name)))
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield layers()
        finally:
            go_on.put(False)
            thread.join()


def visit(
    net: nn.Module,
    before: Callable[[str, Tensor], bool],
    after: Callable[[str, Tensor], None],
    names: Sequence[str],
    run: Run,
) -> None:
    """Run a network; call ``before`` with each layer and its input, and ``after`` with the layer and its output.

    Where ``before`` returns True, what comes after it is not computed.
    """

    def hook_before(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if before(name, args[0]):
            raise StoppedError

    def hook_after(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        after(name, output)

    with ExitStack() as hooks, suppress(StoppedError), torch.no_grad():
        for name in names:
            module = net.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(hook_before, name)))
            hooks.enter_context(module.register_forward_hook(partial(hook_after, name)))
        run(net)
