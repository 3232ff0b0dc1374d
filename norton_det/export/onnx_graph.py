"""Writing of ONNX files."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.errors import UsageError
from norton_det.export.contract import INPUT, Contract
from norton_det.models.detector_calls import outputs_by_name

OPSET = 17
"""Version of ONNX's operators: the last one with which quantisers and other runtimes have years of experience."""

_ERRORS_ONLY = 3  # onnxruntime's level of its log


class Flat(nn.Module):
    """A network as a function of a batch (N, 3, H, W) that returns a tuple of tensors: what a graph is.

    Args:
        net: the network.
        contract: how it is called; a detector is given the only image of the batch.
    """

    def __init__(self, net: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.net, self.contract = net, contract

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network."""
        outputs = outputs_by_name(self.net([images[0]] if self.contract.is_detector else images))
        return tuple(outputs[name] for name in self.contract.outputs)


def import_onnx() -> tuple[Any, Any]:
    """Return the packages onnx and onnxruntime.

    Raises:
        UsageError: one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"ONNX files need {error.name or 'onnx'}: pip install norton-det[export]") from None
    return onnx, onnxruntime


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide what torch's exporters tell their own programmers; whether the result is right is checked afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def refused_as(title: str) -> Iterator[None]:
    """Raise whatever an exporter of torch raises as an error of one line, and hide its warnings.

    Raises:
        UsageError: in place of other errors.
    """
    try:
        with without_warnings(), torch.no_grad():
            yield
    except UsageError:
        raise
    except Exception as error:  # exporters raise errors of any kind
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(f"model cannot be written as {title}: {type(error).__name__}: {reason}") from error


def write_onnx(net: nn.Module, contract: Contract, example: Tensor, path: str | Path, opset: int = OPSET) -> None:
    """Write the graph of a network, with the contract in its metadata.

    Args:
        net: in evaluation mode, as of :func:`norton_det.export.prepare.exportable`.
        contract: how it is called.
        example: images (N, 3, H, W).
        path: the file.
        opset: version of ONNX's operators.

    Raises:
        UsageError: a package is not installed, or the exporter fails; the message has its reason.
    """
    onnx, _ = import_onnx()
    named: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": [*contract.names.values()],
        "dynamic_axes": contract.dynamic_axes,
    }
    with refused_as("ONNX"):
        # The newer exporter fails on the numbers of boxes, which depend on values.
        torch.onnx.export(Flat(net, contract), (example,), str(path), dynamo=False, opset_version=opset, **named)
    model = onnx.load(str(path))
    set_metadata(model, contract.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def in_onnxruntime(layer: nn.Module, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """Return a function that computes a layer in onnxruntime, with as many threads as torch uses."""
    session = open_session(layer_as_onnx(layer, arguments))
    return partial(session.run, None, {INPUT: arguments[0].numpy()})


def layer_as_onnx(layer: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    """Return the content of an ONNX file of one layer, without metadata."""
    file: Any = io.BytesIO()
    with refused_as("ONNX"):
        torch.onnx.export(layer, arguments, file, dynamo=False, opset_version=OPSET, input_names=[INPUT])
    content: bytes = file.getvalue()
    return content


def open_session(model: str | bytes, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """Return onnxruntime's session of a file or its content, with as many threads as torch uses."""
    _, onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would wait actively after a run, and take the processor from whatever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=[*providers])


def set_metadata(model: Any, metadata: Mapping[str, str]) -> None:
    """Put texts by key into the metadata of an ONNX model, in place; others stay."""
    kept = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    for key, value in {**kept, **metadata}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
