"""The formats of exported files: how each is written, and read again for the check."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from norton_det.export.contract import Contract
from norton_det.export.onnx_graph import write_onnx
from norton_det.export.onnx_network import OnnxNetwork
from norton_det.registry import Registry


class Format(NamedTuple):
    """A format.

    Attributes:
        suffix: of its files.
        title: of the format, in messages.
        takes_lists: whether a detector in it takes any number of images, or one at a time.
        write: (network, contract, example images, path) -> None.
        read: path -> what is called as the network.
    """

    suffix: str
    title: str
    takes_lists: bool
    write: Callable[[nn.Module, Contract, Tensor, str | Path], None]
    read: Callable[[str], Callable[[Any], Any]]


FORMATS: Registry[Format] = Registry("format")
FORMATS.register("onnx", Format(".onnx", "ONNX", False, write_onnx, OnnxNetwork))
