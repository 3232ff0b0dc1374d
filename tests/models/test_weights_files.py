"""Weights files of any training program: what is read, what is left out and said, what is refused by name."""

import argparse
import collections
import contextlib
import datetime
import logging
import os
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import norton_det as nd
from norton_det.builders import make_detector
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.state_dicts import read_state_dict
from norton_det.models.unpickling import HARMLESS
from norton_det.models.weights import initial_network, load_state

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
STATE = {"conv.weight": torch.arange(4.0).view(2, 2), "model.bias": torch.ones(3)}
RESNET = "resnet56_cifar"


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (argparse.Namespace(lr=0.1, layers=[1, 2]), {"lr": 0.1, "layers": [1, 2]}),
        (types.SimpleNamespace(lr=0.1), {"lr": 0.1}),
        (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.deque([1, 2], maxlen=3), [1, 2]),
        (Path("a/b"), pathlib.PurePosixPath("a/b")),
        (pathlib.PureWindowsPath("C:\\a"), pathlib.PureWindowsPath("C:\\a")),
        (np.float64(0.5), 0.5),
        (np.int32(7), 7),
        (np.bool_(True), True),
        (np.dtype("float32"), np.dtype("float32")),
        (torch.__version__, str(torch.__version__)),
        (frozenset({1}), frozenset({1})),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_programs_store_beside_weights_is_read(value: Any, expected: Any, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "value": value}, path, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(path), STATE)
    assert nd.models.tensor_files.read_file(path)["value"] == expected


def test_numpy_arrays_are_read(tmp_path: Path) -> None:
    arrays = [np.arange(6).reshape(2, 3), np.array([True]), np.random.default_rng(0).random(3), np.float16([1])]
    torch.save({"model": STATE, "arrays": arrays}, tmp_path / "x.pth")
    read = nd.models.tensor_files.read_file(tmp_path / "x.pth")["arrays"]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read, arrays, strict=True))


class Code:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Config:
    """A class of a training program."""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (Config(), "test_weights_files.Config"),
        (Code(os.system, "echo"), f"{os.name}.system"),
        (Code(eval, "1"), "eval"),
        (Code(getattr, "x", "y"), "getattr"),
        (np.array([{}], dtype=object), "numpy.dtypes.ObjectDType"),
    ],
)
def test_code_is_refused_by_name_in_one_plain_line(value: Any, name: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "value": value}, path)
    refused(lambda: read_state_dict(path), 3, f"{path}: holds a {name}", "expected tensors and plain values")
    with pytest.raises(nd.errors.DataError) as caught:
        read_state_dict(path)
    assert str(caught.value).isprintable(), "neither line ends nor escape codes"
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (datetime.datetime(2026, 1, 2), "datetime.datetime"),
        (range(3), "range"),
        (np.array(["a"]), "numpy.dtypes.StrDType"),
        (os.system, f"{os.name}.system"),
    ],
)
def test_what_is_not_read_is_said_to_be_just_that(value: Any, name: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "value": value}, path)
    message = f"{path}: holds a {name}, which is not among what is read; expected tensors and plain values"
    refused(lambda: read_state_dict(path), 3, message)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_protocols_are_read_or_named(protocol: int, zipped: bool, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": STATE}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    if protocol <= 3:
        assert same(read_state_dict(path), STATE)
    else:
        message = f"{path}: written with pickle protocol {protocol}, which cannot be read without running code; save it"
        refused(lambda: read_state_dict(path), 3, message)


def test_an_array_larger_than_any_memory_gives_one_line(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.pth"
    reconstruct = np.zeros(0).__reduce__()[0]
    torch.save({"model": STATE, "value": Code(reconstruct, np.ndarray, (2**55,), b"b")}, path)
    refused(lambda: read_state_dict(path), 3, f"{path}: damaged, or too large for the memory: Unable to allocate 32")


def test_nothing_that_is_allowed_runs_code() -> None:
    kinds = {type(value) for value in HARMLESS.values()}
    assert kinds <= {type, type(np.dtype), types.FunctionType, types.BuiltinFunctionType, type(type(np.dtype("f4")))}
    functions = {name for name, value in HARMLESS.items() if not isinstance(value, type)}
    assert {name.rpartition(".")[2] for name in functions} == {"scalar", "_reconstruct", "defaultdict", "deque"}


@QUICK
@given(cut=st.integers(0, 2000), byte=st.integers(0, 255), zipped=st.booleans())
def test_a_damaged_file_gives_one_line(cut: int, byte: int, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    content[cut % len(content)] = byte
    path.write_bytes(content)
    with contextlib.suppress(nd.errors.DataError):
        read_state_dict(path)
        return  # the byte does not matter, or is in a tensor
    with pytest.raises(nd.errors.DataError) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()


@QUICK
@given(
    prefixes=st.lists(st.sampled_from(["module", "_orig_mod", "model", "state_dict", "net"]), max_size=4),
    keys=st.lists(st.sampled_from(["model", "state_dict", "net", "network", "model_ema", "ema"]), max_size=2),
    counters=st.booleans(),
    tensors=st.booleans(),
)
def test_keys_and_prefixes_in_any_order(
    prefixes: list[str], keys: list[str], counters: bool, tensors: bool, tmp_path: Path
) -> None:
    content: Any = {".".join([*prefixes, name]): tensor for name, tensor in STATE.items()}
    beside = {"rng_state": torch.get_rng_state(), "best_acc1": torch.tensor([76.1])} if tensors else {}
    if counters:
        content |= {f"{prefix}.total_ops": torch.zeros(1) for prefix in (*prefixes, "conv")}
        content["n_averaged"] = torch.tensor(3)
    for key in keys:
        content = {"epoch": 3, key: content, **beside}
    torch.save(content, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), STATE)


@pytest.mark.parametrize("beside", [{"best_acc1": torch.tensor([76.1])}, {"rng_state": torch.get_rng_state()}])
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_tensor_beside_a_state_dict_is_no_part_of_it(key: str, beside: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"epoch": 1, **beside, key: STATE}, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), STATE)


def test_a_compiled_part_has_its_usual_names(tmp_path: Path) -> None:
    torch.save({"conv._orig_mod.weight": STATE["conv.weight"], "model.bias": STATE["model.bias"]}, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth"), STATE)
    torch.save({"conv._orig_mod.weight": torch.ones(1), "conv.weight": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(nd.errors.DataError, match="two tensors have one name"):
        read_state_dict(tmp_path / "x.pth")


def test_a_network_whose_own_names_look_like_prefixes(tmp_path: Path) -> None:
    own = {"model.0.weight": torch.ones(1), "model.0.bias": torch.ones(1)}
    torch.save({f"module.{name}": tensor for name, tensor in own.items()}, tmp_path / "x.pth")
    assert same(read_state_dict(tmp_path / "x.pth", {"model.0.weight"}), own)


def test_the_log_says_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    average = {f"module.{name}": tensor + 1 for name, tensor in STATE.items()} | {"n_averaged": torch.tensor(3)}
    counted = {**STATE, "conv.total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}
    torch.save({"model_ema": average, "model": counted}, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO):
        assert same(read_state_dict(tmp_path / "x.pth"), STATE)
    assert "the weights under 'model' are used; not those under model_ema" in caplog.text
    assert "2 counters are not used (conv.total_ops, ...)" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {**STATE, "epoch": 3}}, "no state dict under 'model': 'epoch' is a int"),
        ({**STATE, "epoch": 3}, "no state dict: 'epoch' is a int"),
        ({0: 3}, "no state dict: 0 is a int"),
        ({"weights": 3}, "no state dict: 'weights' is a int"),
        ({}, "no state dict: there is no tensor"),
        ([1], "holds a list; expected a state dict"),
    ],
)
def test_other_content_is_named(content: Any, message: str, tmp_path: Path, refused: Refused) -> None:
    torch.save(content, tmp_path / "x.pth")
    refused(lambda: read_state_dict(tmp_path / "x.pth"), 3, "x.pth", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layer1.0.bn1.running_var", "linear.bias"])
def test_values_that_are_not_finite_are_refused(name: str, value: float, tmp_path: Path, refused: Refused) -> None:
    net, spec = nd.compress(None, arch=RESNET)
    state = net.state_dict()
    state[name].view(-1)[0] = value
    message = f"{name} has 1 values that are not finite"
    torch.save(state, tmp_path / "x.pth")
    refused(lambda: initial_network(ARCHITECTURES[RESNET], tmp_path / "x.pth"), 3, "x.pth", message)
    torch.save({"model": state, "spec": spec.to_json()}, tmp_path / "y.pth")
    refused(lambda: nd.load(tmp_path / "y.pth"), 3, "y.pth", message)


def small(dtype: torch.dtype) -> tuple[nn.Module, nd.Spec]:
    net, spec = nd.compress(None, arch=RESNET, rank=1, rates="[0.]+[0.8]*29")
    return net.to(dtype).eval(), spec


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_comes_back_in_its_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    net, spec = small(dtype)
    nd.save(net, spec, tmp_path / "x.safetensors")
    loaded, _ = nd.load(tmp_path / "x.safetensors")
    state, expected = loaded.state_dict(), net.state_dict()
    assert {name: tensor.dtype for name, tensor in state.items()} == {n: t.dtype for n, t in expected.items()}
    assert same(state, expected)
    x = torch.rand(2, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_precision_is_kept_tensor_by_tensor(tmp_path: Path) -> None:
    net, spec = small(torch.float32)
    net.conv1.half()
    net.linear.to(torch.bfloat16)
    nd.save(net, spec, tmp_path / "x.safetensors")
    loaded, _ = nd.load(tmp_path / "x.safetensors")
    kinds = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    assert kinds == {name: tensor.dtype for name, tensor in net.state_dict().items()}
    assert len(set(kinds.values())) == 4, "with the integers of batch norms"


def test_a_conversion_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = nn.Linear(2, 2).half()
    net = nn.Linear(2, 2)
    with caplog.at_level(logging.INFO):
        load_state(net, half.state_dict(), "half.pth")
    assert "half.pth: 2 tensors are converted from torch.float16 to torch.float32" in caplog.text
    assert net.weight.dtype == torch.float32
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_state(net, nn.Linear(2, 2).state_dict(), "float.pth")
        load_state(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta").double().state_dict(), "shapes")
    assert caplog.text == ""


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_backbone_without_classifier(suffix: str, tmp_path: Path, refused: Refused) -> None:
    architecture: Architecture = ARCHITECTURES["resnet50"]
    state = architecture.build(3).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    path = tmp_path / f"trunk{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    detector, spec = make_detector("fasterrcnn_cpresnet50_fpn", weights_backbone=path, num_classes=3)
    assert torch.equal(detector.backbone.body.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    assert spec.provenance["backbone"]["source"] == path.name
    refused(lambda: initial_network(architecture, path), 3, "lacks 2 tensors (fc.weight")
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    run = {"weights_backbone": tmp_path / "part.pth", "num_classes": 3}
    refused(lambda: make_detector("fasterrcnn_cpresnet50_fpn", **run), 3, "lacks 1 tensors (layer1.0.conv1.weight")
