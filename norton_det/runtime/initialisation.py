"""Networks whose parameters are about to be replaced: their random initialisation is left out."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_RANDOM = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_})


class without_initialisation(TorchFunctionMode):  # noqa: N801  used as a context
    """Within the block, tensors are not filled with random numbers in place: their values are undefined.

    Example:
        >>> from torch import nn
        >>> from norton_det.runtime.initialisation import without_initialisation
        >>> with without_initialisation():
        ...     layer = nn.Linear(2, 3)
        >>> layer.weight.shape
        torch.Size([3, 2])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave out the functions that fill a tensor with random numbers."""
        if func in _RANDOM:
            return args[0]
        return func(*args, **(kwargs or {}))


def give_memory(net: nn.Module) -> None:
    """Put the parameters and buffers of a network on "meta" on the CPU, in place; buffers are zero.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from norton_det.runtime.initialisation import give_memory
        >>> layer = nn.BatchNorm2d(3, device="meta")
        >>> give_memory(layer)
        >>> layer.running_mean
        tensor([0., 0., 0.])
    """
    given: dict[int, Tensor] = {}
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu", requires_grad=False)
                new = given.setdefault(id(parameter), nn.Parameter(empty, parameter.requires_grad))
                module._parameters[name] = new  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = given.setdefault(id(buffer), torch.zeros_like(buffer, device="cpu"))


def has_constants(net: nn.Module) -> bool:
    """Tell whether a network on "meta" lacks values that its state dict does not have: constants of its builder.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from norton_det.runtime.initialisation import has_constants
        >>> layer = nn.Linear(2, 3, device="meta")
        >>> layer.scale = torch.ones(1, device="meta")
        >>> has_constants(layer), has_constants(nn.Linear(2, 3, device="meta"))
        (True, False)
    """
    for module in net.modules():
        kept = {name: buffer for name, buffer in module._buffers.items() if name in module._non_persistent_buffers_set}
        for value in (*kept.values(), *vars(module).values()):
            inner = value if isinstance(value, (list, tuple)) else (value,)
            if any(isinstance(one, Tensor) and one.is_meta for one in inner):
                return True
    return False
