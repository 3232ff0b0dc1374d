"""The formats of exported files: how each is written, and read again for the check."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from norton_det.export.contract import Contract
from norton_det.export.implementations import Runner, in_torch
from norton_det.export.onnx_graph import in_onnxruntime, write_onnx
from norton_det.export.onnx_network import OnnxNetwork
from norton_det.export.programs import read_program, read_script, write_program, write_script
from norton_det.registry import Registry


class Format(NamedTuple):
    """A format.

    Attributes:
        suffix: of its files.
        title: of the format, in messages.
        takes_lists: whether a detector in it takes any number of images, or one at a time.
        write: (network, contract, example images, path) -> None.
        read: path -> what is called as the network.
        runner: computes one layer in the runtime.
    """

    suffix: str
    title: str
    takes_lists: bool
    write: Callable[[nn.Module, Contract, Tensor, str | Path], None]
    read: Callable[[str], Callable[[Any], Any]]
    runner: Runner


FORMATS: Registry[Format] = Registry("format")
FORMATS.register("onnx", Format(".onnx", "ONNX", False, write_onnx, OnnxNetwork, in_onnxruntime))
FORMATS.register("torch.export", Format(".pt2", "torch.export", False, write_program, read_program, in_torch))
FORMATS.register("torchscript", Format(".pt", "TorchScript", True, write_script, read_script, in_torch))
