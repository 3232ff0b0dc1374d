"""Comparison of what two trainings wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from norton_det.models.state_dicts import read_state_dict
from norton_det.runtime.run_files import read_lines


def _checkpoint(path: Path) -> Any:
    content = torch.load(path, weights_only=True)
    return {name: value for name, value in content.items() if name not in ("args", "cuda_rng")}


READ: dict[str, Callable[[Path], Any]] = {
    ".pth": _checkpoint,
    ".safetensors": read_state_dict,
    ".jsonl": read_lines,
    ".json": lambda path: json.loads(path.read_text()),
}
"""What is compared of a file, by its suffix."""


def difference(ours: Any, theirs: Any, where: str) -> str:
    """Return where two values differ, be it in one bit, but for seconds; "" if they do not."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        parts = ((ours[key], theirs[key], f"{where}: {key}") for key in ours if key != "seconds")
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        parts = (
            (one, other, f"{where}[{number}]") for number, (one, other) in enumerate(zip(ours, theirs, strict=True))
        )
    elif isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return "" if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else f"{where} differs"
    else:
        return "" if type(ours) is type(theirs) and ours == theirs else f"{where} is {ours!r:.50}, not {theirs!r:.50}"
    return next(filter(None, (difference(*part) for part in parts)), "")
