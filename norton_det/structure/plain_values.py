"""Which values a plain attribute of a module may have: of the kind that it has, and within limits.

A file of weights tells them. A network with a stride of 10^9, or a score threshold that is a text, fails long after it
was loaded or takes all memory.
"""

import math
from collections.abc import Mapping
from typing import Any

from norton_det.errors import UsageError, shown
from norton_det.json_text import is_number

MOST, MOST_VALUES = 100_000, 100
"""Limits: of a number, unless the standard network has a larger one, and of how many there are in a sequence."""
_COUNTS = ("detections_per_img", "batch_size_per_image", "_pre_nms_top_n", "_post_nms_top_n", "topk_candidates")
_LIMITS = {
    **dict.fromkeys(("stride", "dilation", "kernel_size", "min_size", "max_size", "size_divisible"), (1, MOST)),
    **dict.fromkeys(("padding", "eps"), (0, MOST)),
    **dict.fromkeys(_COUNTS, (1, MOST)),
    **dict.fromkeys(("sizes", "aspect_ratios", "weights", "image_std"), (1e-6, MOST)),
    **dict.fromkeys(("positive_fraction", "nms_thresh", "high_threshold", "low_threshold"), (0, 1)),
    "score_thresh": (-1, 1),
    "output_size": (1, 256),  # of RoIAlign
    "sampling_ratio": (-1, 64),
}
_MAY_BE_NONE = ("momentum", "fixed_size", "divisor_override", "stride")
_MAY_BE_TEXT = ("padding",)
_FOR_EACH_SIDE = ("stride", "padding", "dilation", "kernel_size", "output_size")
_ANY_NUMBER_OF = ("min_size", "sizes", "aspect_ratios")
OF_TENSORS = frozenset(
    {"in_channels", "out_channels", "kernel_size", "groups", "transposed", "in_features", "out_features"}
    | {"num_features", "num_groups", "num_channels", "num_parameters", "rank", "affine", "track_running_stats"}
)
"""Attributes that follow from a module's tensors."""


def check_value(path: str, value: Any, present: Any) -> None:
    """Check that a plain value can take the place of another one.

    Args:
        path: of the attribute, as ``layer4.0.conv2.stride``; its last part decides the limits.
        value: the new value, with tuples for lists.
        present: the value that it replaces.

    Raises:
        UsageError: it cannot; the message names the attribute and what was expected.

    Example:
        >>> check_value("conv1.stride", (2, 2), (1, 1))
        >>> check_value("conv1.stride", (0, 2), (1, 1))
        Traceback (most recent call last):
        norton_det.errors.UsageError: attribute 'conv1.stride' is (0, 2); expected numbers from 1 to 100,000
    """
    if problem := _problem(path.rpartition(".")[2], value, present):
        raise UsageError(f"attribute {path!r} is {shown(value)}; expected {problem}")


def _problem(name: str, value: Any, present: Any) -> str:
    """Return what is expected instead; an empty text if the value is good."""
    if value is None or present is None:
        optional = present is None or name in _MAY_BE_NONE
        numbers = value if isinstance(value, tuple) else () if isinstance(value, (bool, str, type(None))) else (value,)
        if not optional or len(numbers) > 4 or not all(map(is_number, numbers)):
            return f"a value like {shown(present)}"
        return _first(_of_numbers(name, one, 0.0) for one in numbers)
    if isinstance(value, str) and name in _MAY_BE_TEXT:
        return ""
    if isinstance(present, Mapping) or isinstance(value, Mapping):
        same = isinstance(value, Mapping) and isinstance(present, Mapping) and value.keys() == present.keys()
        return _first(_problem(name, value[key], present[key]) for key in value) if same else f"the keys of {present}"
    if isinstance(present, tuple) and isinstance(value, tuple):
        return _of_sequences(name, value, present)
    if isinstance(present, (bool, str)) or isinstance(value, (bool, str)):
        return "" if type(value) is type(present) else f"a value like {shown(present)}"
    numbers, before = (part if isinstance(part, tuple) else (part,) for part in (value, present))
    fits = (not isinstance(value, tuple) and not isinstance(present, tuple)) or name in _FOR_EACH_SIDE
    if not fits or not all(map(is_number, (*numbers, *before))) or not 0 < len(numbers) <= 2:
        return f"a value like {shown(present)}"
    return _first(_of_numbers(name, one, before[0]) for one in numbers)


def _of_sequences(name: str, value: tuple[Any, ...], present: tuple[Any, ...]) -> str:
    nested = any(isinstance(part, tuple) for part in present) or name in _ANY_NUMBER_OF
    numbers = all(map(is_number, present))
    if len(value) > MOST_VALUES or not (value or not present):
        return f"1 to {MOST_VALUES} values"
    if numbers and not nested and len(value) != len(present):
        return f"as many numbers as {shown(present)}"
    return _first(_problem(name, one, present[min(i, len(present) - 1)]) for i, one in enumerate(value) if present)


def _of_numbers(name: str, value: float, present: float) -> str:
    least, limit = _LIMITS.get(name, (-MOST, MOST))
    most = max(limit, present)
    if isinstance(present, int) and not isinstance(value, int):
        return "whole numbers"
    return "" if math.isfinite(value) and least <= value <= most else f"numbers from {least:,} to {most:,}"


def _first(problems: Any) -> str:
    return next(filter(None, problems), "")
