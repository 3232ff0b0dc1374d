"""Writing and reading of torch's own formats: programs of ``torch.export``, and TorchScript."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from norton_det.errors import UsageError
from norton_det.export.contract import Contract
from norton_det.export.onnx_graph import refused_as, without_warnings

_LARGE = (256, 320)
"""Least height and width of an example: where a map has a side of 1, its size is taken for a constant."""


def write_program(net: nn.Module, contract: Contract, example: Tensor, path: str | Path) -> None:
    """Write a program of ``torch.export``, with the contract among its extra files.

    Args:
        net: in evaluation mode, as of :func:`norton_det.export.prepare.exportable`.
        contract: how it is called.
        example: images (N, 3, H, W).
        path: the file.

    Raises:
        UsageError: a detector; or the exporter fails, the message has its reason.
    """
    if contract.is_detector:
        raise UsageError(
            f"model is a {type(net).__name__}, whose numbers of boxes depend on values: torch.export cannot hold it; "
            "expected the format onnx or torchscript, or a backbone or classifier"
        )
    numbers = {"batch": 0, "height": 2, "width": 3}
    shapes: Any = {numbers[axis]: Dim.DYNAMIC for axis in contract.dynamic}
    if "height" in contract.dynamic:
        sides = [max(pair) for pair in zip(_LARGE, contract.size, strict=True)]
        example = torch.rand(len(example), 3, *sides)
    with refused_as("a program of torch.export"):
        program = torch.export.export(net, (example,), dynamic_shapes=(shapes or None,))
        torch.export.save(program, str(path), extra_files=contract.to_metadata())


def read_program(path: str) -> Callable[[Any], Any]:
    """Return what a program of ``torch.export`` computes."""
    with without_warnings():
        run: Callable[[Any], Any] = torch.export.load(path).module()
    return run


class _Detections(nn.Module):
    """A detector whose script returns the detections, as the detector does itself, and not the losses as well."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Detect objects in images (3, H, W)."""
        _, detections = self.detector(images)
        return detections  # type: ignore[no-any-return]


def write_script(net: nn.Module, contract: Contract, example: Tensor, path: str | Path) -> None:
    """Write a TorchScript file, with the contract among its extra files; it is scripted, so that it keeps its branches.

    Args:
        net: in evaluation mode, as of :func:`norton_det.export.prepare.exportable`.
        contract: how it is called.
        example: not used.
        path: the file.

    Raises:
        UsageError: the network cannot be scripted, the message has torch's reason.
    """
    if hasattr(net, "_has_warned"):  # torchvision's scripts warn at the first call, unless they did
        setattr(net, "_has_warned", True)  # noqa: B010  mypy takes it for a tensor
    whole = _Detections(net).eval() if contract.is_detector else net
    with refused_as("TorchScript"):
        torch.jit.save(torch.jit.script(whole), str(path), _extra_files=contract.to_metadata())


def read_script(path: str) -> Callable[[Any], Any]:
    """Return what a TorchScript file computes."""
    with without_warnings():
        run: Callable[[Any], Any] = torch.jit.load(path)
    return run
