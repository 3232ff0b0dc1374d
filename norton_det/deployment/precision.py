"""Lower precision for inference: what a network computes with its parameters, while boxes are computed as before.

The parts of a network that are lowered have parameters of the lower type; on the way in, tensors are converted to it,
on the way out to float32. What lies between the parts, such as anchors, the coordinates of boxes, non-maximum
suppression and the coordinates of RoIAlign, sees float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton_det.errors import UsageError
from norton_det.models.parts_without_boxes import parts_without_boxes
from norton_det.runtime.modes import copied

LOWER: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_dtype(net: nn.Module, dtype: torch.dtype) -> None:
    """Check that a network can be lowered to a type.

    Raises:
        UsageError: the type is none of :data:`LOWER`, or the network has parameters in another one than float32.
    """
    if dtype not in LOWER.values():
        raise UsageError(f"dtype is {dtype}; expected one of: {', '.join(map(str, LOWER.values()))}")
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UsageError(f"dtype is {dtype}, but {name} is {parameter.dtype}; expected a network in float32")


def lowered_parts(net: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that compute in lower precision, by name: those with parameters that compute no boxes."""
    return {name: part for name, part in parts_without_boxes(net).items() if _dtype(part) is not None}


def lowered(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Let the parts of ``net`` compute in ``dtype``, in place, and return ``net``: it takes and returns float32."""
    for part in lowered_parts(net).values():
        part.to(dtype)
        part.register_forward_pre_hook(_enter, with_kwargs=True)
        part.register_forward_hook(_leave)
    net.input_dtype = torch.float32  # type: ignore[assignment]
    return net


def raised(net: nn.Module) -> nn.Module:
    """Undo :func:`lowered`, in place, and return ``net``: it computes in float32, with the values that it has."""
    for part in lowered_parts(net).values():
        own = {key for hooks in _hooks(part) for key, hook in hooks.items() if hook in (_enter, _leave)}
        for hooks in (*_hooks(part), part._forward_pre_hooks_with_kwargs):
            for key in own & hooks.keys():
                del hooks[key]
    return net.float()


def rounded(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of ``net`` in float32 whose parts have only values that ``dtype`` can hold."""
    net = copied(net)
    for part in lowered_parts(net).values():
        part.to(dtype)
    return net.float()


def _hooks(part: nn.Module) -> tuple[Any, Any]:
    return part._forward_pre_hooks, part._forward_hooks


def _enter(part: nn.Module, args: Any, kwargs: Any) -> Any:
    # The type is that of the parameters now: after Module.float() all is in float32.
    return _converted((args, kwargs), _dtype(part) or torch.float32)


def _leave(part: nn.Module, args: Any, outputs: Any) -> Any:
    return _converted(outputs, torch.float32)


def _converted(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, values
    )


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)
