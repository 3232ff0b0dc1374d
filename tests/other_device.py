"""A device that is not there: its tensors are computed on the CPU, and say that they are elsewhere.

An operation on tensors of both devices is an error, as on a GPU: what forgets to move a tensor is found without one.
torch knows a single further device in a process, for good: this is a program of its own, which runs the tasks of
test_cuda.py there.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from test_cuda import NARROW, batch, narrow, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import norton_det as nd
from norton_det.models import ARCHITECTURES, resnet_cifar

_INDEXING = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")


class _Module(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("elsewhere", _Module())
ELSEWHERE = torch.device("elsewhere", 0)


class Elsewhere(Tensor):
    """A tensor on the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type["Elsewhere"], inner: Tensor) -> "Elsewhere":
        options = {"dtype": inner.dtype, "device": ELSEWHERE, "strides": inner.stride()}
        made = Tensor._make_wrapper_subclass(cls, inner.size(), **options)
        made.inner = inner
        return made

    def __init__(self, inner: Tensor) -> None: ...

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations that have no tensor yet as well."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are, or where it is told to."""
    leaves = tree_leaves((args, kwargs))
    others = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, Elsewhere)}
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) and leaf.dim() > 0]
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    copied = bool(devices) or str(function) == "aten.copy_.default"
    indexed = str(function) in _INDEXING and isinstance(args[0], Elsewhere)  # by indices on the CPU: torch allows that
    if others and here and not copied and not indexed:
        raise RuntimeError(f"{function}: tensors on {ELSEWHERE}, and on the CPU one of shape {tuple(here[0].shape)}")
    there = devices[0].type == ELSEWHERE.type if devices else bool(others)
    if str(function) == "aten.copy_.default":
        there = isinstance(args[0], Elsewhere)

    def inside(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu") if leaf.type == ELSEWHERE.type else leaf
        return leaf.inner if isinstance(leaf, Elsewhere) else leaf

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not there:
            return leaf
        return others[id(leaf)] if id(leaf) in others else Elsewhere(leaf)

    return tree_map(outside, function(*tree_map(inside, args), **tree_map(inside, kwargs)))


def _empty(*sizes: Any, dtype: Any = None, **_: Any) -> Tensor:
    make = torch.empty_strided if len(sizes) == 2 else torch.empty
    return Elsewhere(make(*sizes, dtype=dtype, device="cpu"))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, inner = (each.inner if isinstance(each, Elsewhere) else each for each in (source, target))
    inner.copy_(source)
    return target


# What torch calls where no mode sees it: in constructors from numbers, and in other threads.
LIBRARY = torch.library.Library("aten", "IMPL")
for _name, _function in (("empty.memory_format", _empty), ("empty_strided", _empty), ("_copy_from", _copy_from)):
    LIBRARY.impl(_name, _function, "PrivateUse1")


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Make the other device usable within the block."""
    with _Mode(), patch.object(torch, "inference_mode", torch.no_grad):  # whose tensors cannot be wrapped
        yield ELSEWHERE


def resnet8() -> tuple[nn.Module, str]:
    """Return a small dense network, and the name of its architecture."""
    resnet_cifar._WIDTHS = (4, 8, 16)
    builder, plan, rates = partial(resnet_cifar.CifarResNet, 1), resnet_cifar._plan(1), resnet_cifar._rate_order(1)
    ARCHITECTURES._items["resnet8"] = nd.Architecture(
        "resnet8", builder, plan, rates, 10, 32, classifier="linear", dataset="cifar10"
    )
    return builder(num_classes=10), "resnet8"


IMAGES = torch.rand(4, 3, 32, 32)


def compress(device: torch.device, **options: Any) -> None:
    net, arch = resnet8()
    compressed, _ = nd.compress(net.to(device), arch=arch, calibration=IMAGES, **options)
    assert {tensor.device for tensor in compressed.state_dict().values()} == {device}


def compress_seeded(device: torch.device) -> None:
    _, arch = resnet8()
    compressed, _ = nd.compress(None, arch=arch, rank=1, device=device)
    assert {tensor.device for tensor in compressed.state_dict().values()} == {device}


def compress_detector(device: torch.device) -> None:
    net, spec = narrow("fasterrcnn_cpresnet50_fpn", rank=None)
    ranks = {"backbone.body.layer4.1.conv2": 1, "backbone.fpn.layer_blocks.1.0": 1}
    images, _ = batch(spec.arch)
    nd.compress(net.to(device), arch=spec, rank=ranks, rates="[0.]*18+[0.4]*2", calibration=images)


def deploy(device: torch.device, arch: str | None = None) -> None:
    net = narrow(arch)[0] if arch else nd.decompose(*resnet8(), 1)[0]
    images = [image.to(device) for image in batch(arch)[0]] if arch else IMAGES.to(device)
    fast = nd.deploy(net.to(device).eval(), images, repeats=1)
    fast(images)


def reconstruct(device: torch.device) -> None:
    net, arch = resnet8()
    student, spec = nd.decompose(net, arch, 1)
    nd.reconstruct(student.to(device), spec, net.to(device), IMAGES, epochs=1, batch_size=2)


TASKS: dict[str, Callable[[torch.device], object]] = {
    "cp": partial(compress, rank=1, rates=[0.25] * 6),
    "tucker2": partial(compress, rank=2, rates=[0.25] * 6, decomposition="tucker2"),
    "svd": partial(compress, rank={"conv1": 3, "layer2.0.conv2": 4, "linear": 5}, decomposition="svd"),
    **{criterion: partial(compress, rates=[0.25] * 6, criterion=criterion) for criterion in nd.pruning.CRITERIA},
    "compress a seeded network": compress_seeded,
    "allocate": partial(compress, budget=nd.Budget(macs=4e5)),
    "reconstruct": reconstruct,
    "deploy": deploy,
    **{arch: partial(train, arch) for arch in NARROW},
    "compress a detector": compress_detector,
    "deploy a detector": partial(deploy, arch="maskrcnn_cpresnet50_fpn"),
}

if __name__ == "__main__":
    with other_device() as other:
        for name in sys.argv[1:]:
            TASKS[name](other)
