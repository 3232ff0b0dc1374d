"""Networks whose parameters are about to be replaced: their random initialisation is left out."""

from typing import Any

from torch import Tensor
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
