"""Runtimes in which classifiers are timed: how the files of each are made and run, by precision."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import norton_det as nd
from norton_det.export.int8 import export_int8
from norton_det.export.onnx_graph import open_session

Run = Callable[[], Any]
FLOAT, BFLOAT, INT8 = "float32", "bfloat16", "int8"
PROFILED = "onnxruntime"


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        packages: that it needs.
        suffixes: of the file of each precision, after the network's path.
        loaders: precision -> (path, images) -> function that runs the network.
        weights: suffix of the file whose size counts, in place of that of the loaded one.
    """

    packages: tuple[str, ...]
    suffixes: Mapping[str, str]
    loaders: Mapping[str, Callable[[str, Tensor], Run]]
    weights: Mapping[str, str] | None = None

    def file(self, path: str, precision: str) -> Path:
        """Return the file whose size counts."""
        return Path(path + (self.weights or self.suffixes)[precision])

    def profile(self, path: str, precision: str, images: Tensor) -> dict[str, Any]:
        """Return the milliseconds of each kind of operator that onnxruntime ran."""
        return _profile(path + self.suffixes[precision], images)


def prepare(runtime: str, net: nn.Module, spec: nd.Spec, images: Sequence[Tensor], path: str) -> None:
    """Write the files of a network for a runtime."""
    _PREPARE[runtime](net, spec, images, path)


def _prepare_torch(net: nn.Module, spec: nd.Spec, images: Sequence[Tensor], path: str) -> None:
    for precision, dtype in ((FLOAT, None), (BFLOAT, torch.bfloat16)):
        file = Path(path + _TORCH[precision])
        if not file.is_file():
            nd.save(nd.deploy(net, images[0][None], dtype=dtype), spec, file)


def _prepare_onnx(net: nn.Module, spec: nd.Spec, images: Sequence[Tensor], path: str) -> None:
    options: dict[str, Any] = {"spec": spec, "check_images": images[:1]}
    nd.export_network(net, path + _ONNX[FLOAT], **options)
    export_int8(net, path + _ONNX[INT8], images, **options)


def _prepare_openvino(net: nn.Module, spec: nd.Spec, images: Sequence[Tensor], path: str) -> None:
    import nncf
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        nd.export_network(net, f"{folder}/net.onnx", spec=spec, check_images=images[:1], implementation="factored")
        model = openvino.convert_model(f"{folder}/net.onnx", input=[1, *images[0].shape])
    openvino.save_model(model, path + _OPENVINO[FLOAT], compress_to_fp16=False)
    data = nncf.Dataset([image[None].numpy() for image in images])
    openvino.save_model(nncf.quantize(model, data, subset_size=len(images)), path + _OPENVINO[INT8])


def _in_torch(precision: str, *, compiled: bool) -> Callable[[str, Tensor], Run]:
    def load(path: str, images: Tensor) -> Run:
        net: Any = nd.load(path + _TORCH[precision])[0]
        net = torch.compile(net) if compiled else net

        def run() -> Any:
            with torch.inference_mode():
                return net(images)

        return run

    return load


def _in_onnxruntime(precision: str) -> Callable[[str, Tensor], Run]:
    def load(path: str, images: Tensor) -> Run:
        session = open_session(path + _ONNX[precision])
        return lambda: session.run(None, {"images": images.numpy()})[0]

    return load


def _in_openvino(precision: str) -> Callable[[str, Tensor], Run]:
    def load(path: str, images: Tensor) -> Run:
        import openvino

        # By itself it computes in bfloat16 where the processor can.
        kind = {FLOAT: "f32", BFLOAT: "bf16", INT8: "f32"}[precision]
        threads = torch.get_num_threads()
        options = {"INFERENCE_PRECISION_HINT": kind, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path + _OPENVINO[precision], "CPU", options)
        return lambda: compiled(images.numpy())[0]

    return load


def _profile(file: str, images: Tensor, runs: int = 10) -> dict[str, Any]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, {"images": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    nodes = nodes[len(nodes) // (runs + 1) :]  # the first run allocates memory
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in nodes:
        entry = sums[event["args"]["op_name"]]
        entry[0] += 1 / runs
        entry[1] += event["dur"] / 1e3 / runs
    total = sum(ms for _, ms in sums.values())
    rows = [
        (kind, f"{count:.0f}", f"{ms:.2f}", f"{ms / total:.0%}")
        for kind, (count, ms) in sorted(sums.items(), key=lambda item: -item[1][1])
    ]
    return {"milliseconds": total, "rows": rows}


_TORCH = {FLOAT: ".safetensors", BFLOAT: ".bf16.safetensors"}
_ONNX = {FLOAT: ".onnx", INT8: ".int8.onnx"}
_OPENVINO = {FLOAT: ".xml", BFLOAT: ".xml", INT8: ".int8.xml"}
_PREPARE = {
    "torch": _prepare_torch,
    "torch.compile": _prepare_torch,
    "onnxruntime": _prepare_onnx,
    "openvino": _prepare_openvino,
}
RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime(("torch",), _TORCH, {name: _in_torch(name, compiled=False) for name in _TORCH}),
    "torch.compile": Runtime(("torch",), _TORCH, {name: _in_torch(name, compiled=True) for name in _TORCH}),
    "onnxruntime": Runtime(("onnx", "onnxruntime"), _ONNX, {name: _in_onnxruntime(name) for name in _ONNX}),
    "openvino": Runtime(
        ("openvino", "nncf"),
        _OPENVINO,
        {name: _in_openvino(name) for name in _OPENVINO},
        {name: suffix.replace(".xml", ".bin") for name, suffix in _OPENVINO.items()},
    ),
}
