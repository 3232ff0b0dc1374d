"""What runs on a GPU, run on the CPU as well: a step of each task, calibration, deployment, resuming, processes.

`make test-cuda` runs the part that needs a CUDA device; without one it is reported as skipped. Where a law relates a
device to the CPU, it is exact on the CPU itself.
"""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, AtLine, start, tool
from torch import Tensor, nn

import norton_det as nd
from norton_det.cli.common import EXIT_TERMINATED
from norton_det.deployment.deploy import CHANGES_OUTPUTS
from norton_det.models import ARCHITECTURES
from norton_det.models.tensor_files import read_file
from norton_det.runtime.device import full_precision
from norton_det.runtime.distributed import data_parallel, rank, world_size
from norton_det.structure.settings import spec_from_configuration
from norton_det.training import Classification, Detection, TrainingState, TrainOptions, train_one_epoch
from norton_det.training.detection import keep_losses_finite
from norton_det.training.optim import make_optimizer, make_schedule

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])]
TOLERANCE = {"cpu": 0.0, "cuda": 1e-3}
NARROW = {
    "resnet56_cifar": "[0.]+[0.8]*29",
    "fasterrcnn_cpresnet50_fpn": "[0.]+[0.9]*19",
    "maskrcnn_cpresnet50_fpn": "[0.]+[0.9]*19",
    "keypointrcnn_cpresnet50_fpn": "[0.]+[0.9]*19",
}


@pytest.fixture
def _full_precision() -> Iterator[None]:
    """Compare float32 with float32: GPUs convolve with fewer bits by default."""
    with full_precision():
        yield


def narrow(arch: str, rank: int | None = 1) -> tuple[nn.Module, nd.Spec]:
    """Return a narrow network of random weights, and its spec; detectors take images of 64 pixels."""
    spec = spec_from_configuration(arch, rank, NARROW[arch], num_classes=2 if arch.startswith("keypoint") else 3)
    if arch != "resnet56_cifar":
        keypoints = {"num_keypoints": 4} if arch.startswith("keypoint") else {}
        spec = nd.Spec(spec.arch, spec.num_classes, spec.decompositions, spec.widths, options={**TINY, **keypoints})
    torch.manual_seed(0)
    return nd.build(spec), spec


def batch(arch: str) -> tuple[Any, Any]:
    """Return two images with their targets, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    if arch == "resnet56_cifar":
        return torch.rand(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 1])
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 50]]),
        "labels": torch.ones(2, dtype=torch.int64),
        "masks": torch.ones(2, 64, 64, dtype=torch.uint8),
        "keypoints": torch.tensor([[[10.0, 10, 1], [20, 20, 1], [30, 30, 1], [30, 12, 0]]] * 2),
    }
    images = torch.rand(2, 3, 64, 64, generator=generator)
    return list(images), [{**target, "image_id": i} for i in range(len(images))]


def task_of(net: nn.Module, arch: str, device: torch.device) -> Classification | Detection:
    if arch == "resnet56_cifar":
        return Classification(lambda epoch, start: [], lambda: [], device, 3)
    keep_losses_finite(net)
    return Detection(lambda epoch, start: [], lambda: [], device, evaluator=None, kinds=("bbox",))


def train(arch: str, device: torch.device, amp: bool = False, dtype: torch.dtype = torch.float32) -> TrainingState:
    """Make two updates, each of two batches, in as many processes as there are."""
    net, spec = narrow(arch)
    net.to(device, dtype)
    optimizer = make_optimizer(net, "sgd", lr=1e-3, momentum=0.9, weight_decay=0)
    scaler = torch.amp.GradScaler(device.type, init_scale=8.0, enabled=amp and device.type == "cuda")
    schedule = make_schedule(optimizer, "steplr", epochs=1)
    state = TrainingState(net, spec, optimizer, schedule, scaler)
    options = TrainOptions(accumulate=2, amp=amp, clip_grad_norm=10.0)
    model = data_parallel(net, device)
    images, targets = batch(arch)
    images = images.to(dtype) if isinstance(images, Tensor) else images
    assert train_one_epoch(model, state, [(images, targets)] * 4, task_of(net, arch, device), options)
    return state


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().cpu().double(), theirs.detach().cpu().double()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", sorted(NARROW))
def test_a_step_of_each_task(arch: str, device: str, amp: bool) -> None:
    state = train(arch, torch.device(device), amp)
    assert state.step == 4
    assert 0 < state.loss < float("inf")
    before = dict(narrow(arch)[0].named_parameters())
    after = dict(state.model.named_parameters())
    assert {parameter.device.type for parameter in after.values()} == {device}
    assert {value["momentum_buffer"].device.type for value in state.optimizer.state.values()} == {device}
    assert all(parameter.isfinite().all() for parameter in after.values())
    changed = [name for name, parameter in after.items() if not torch.equal(parameter.cpu(), before[name])]
    assert len(changed) > 0.9 * len(after), set(after) - set(changed)
    images, _ = batch(arch)
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    with torch.no_grad():
        outputs = state.model.eval()(images)
    tensors = [outputs] if isinstance(outputs, Tensor) else [value for one in outputs for value in one.values()]
    assert {tensor.device.type for tensor in tensors} == {device}
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_that_of_the_cpu(device: str) -> None:
    """In float64: 55 batch norms over four images enlarge what float32 rounds."""
    here, there = (train("resnet56_cifar", torch.device(name), dtype=torch.float64) for name in (device, "cpu"))
    for name, parameter in there.model.named_parameters():
        assert relative_difference(here.model.get_parameter(name), parameter) <= TOLERANCE[device] * 1e-3, name
    assert here.loss == pytest.approx(there.loss, rel=TOLERANCE[device] * 1e-3)


@pytest.mark.usefixtures("_full_precision")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ["resnet56_cifar", "fasterrcnn_cpresnet50_fpn"])
def test_compression_with_calibration_is_that_of_the_cpu(arch: str, device: str) -> None:
    net, spec = narrow(arch, rank=None)
    images, _ = batch(arch)
    rates = "[0.]*3+[0.4]*27" if arch == "resnet56_cifar" else "[0.]*18+[0.4]*2"
    ranks = {"resnet56_cifar": {"conv1": 2, "layer3.4.conv2": 1}}.get(arch, {"backbone.body.layer4.1.conv2": 1})
    compress = partial(nd.compress, arch=spec, rank=ranks, rates=rates, calibration=images, criterion="norm")
    (here, spec_here), (there, spec_there) = (compress(copy.deepcopy(net).to(name)) for name in (device, "cpu"))
    assert spec_here == spec_there
    assert {tensor.device.type for tensor in here.state_dict().values()} == {device}
    errors = [made.provenance["calibrate"]["layers"] for made in (spec_here, spec_there)]
    for name, error in errors[1].items():
        assert errors[0][name]["fitted"] == pytest.approx(error["fitted"], rel=TOLERANCE[device] * 10, abs=1e-3)
    if arch == "resnet56_cifar":
        with torch.no_grad():
            outputs = [made.eval()(images.to(next(made.parameters()).device)) for made in (here, there)]
        assert relative_difference(*outputs) <= TOLERANCE[device] * 10


@pytest.mark.parametrize("device", DEVICES)
def test_a_derived_plan_is_the_declared_one(device: str) -> None:
    net, _ = narrow("resnet56_cifar")
    images, _ = batch("resnet56_cifar")
    plan = nd.derive_plan(net.to(device), images.to(device)).plan
    assert len(plan.widths) == len(ARCHITECTURES["resnet56_cifar"].plan.widths)
    assert [layer.name for layer in plan.layers] == [
        layer.name for layer in ARCHITECTURES["resnet56_cifar"].plan.layers
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arch", ["resnet56_cifar", "fasterrcnn_cpresnet50_fpn"])
def test_a_deployed_network_is_equal_and_comes_back(arch: str, device: str, tmp_path: Path) -> None:
    net, spec = narrow(arch)
    net.to(device).eval()
    images, _ = batch(arch)
    images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    fast = nd.deploy(net, images, repeats=1)
    assert fast.deployment.folded
    assert CHANGES_OUTPUTS not in fast.deployment.unchanged.values()
    nd.save(fast, spec, tmp_path / "fast.safetensors")
    loaded, _ = nd.load(tmp_path / "fast.safetensors", device)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {device}
    if arch != "resnet56_cifar":  # boxes of equal scores may change their order: compare what they come from
        net, fast, loaded = (partial(features, each) for each in (net, fast, loaded))
    with torch.inference_mode(), full_precision():  # deploying itself works with whatever torch is set to
        expected, *others = (each(images) for each in (net, fast, loaded))
    assert all(relative_difference(other, expected) < 1e-3 for other in others)


def features(detector: Any, images: list[Tensor]) -> Tensor:
    levels = detector.backbone(torch.stack(images)).values()
    return torch.cat([level.flatten() for level in levels])


def recipe(net: Path, data: Path, out: Path, device: str) -> list[str]:
    words = ["--weights", str(net), "--data-path", str(data), "--output-dir", str(out), "--device", device, "-j", "0"]
    return [*words, "-b", "4", "--lr", "0.01", "--epochs", "2", "--print-freq", "1"]


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    _, spec = narrow("maskrcnn_cpresnet50_fpn")
    spec = nd.Spec(spec.arch, 4, spec.decompositions, spec.widths, options=spec.options)
    nd.save(nd.build(spec), spec, tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_run_that_is_stopped_goes_on(
    kind: str,
    device: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixtures = {"classifier": ("small_net", "classes"), "detector": ("detector", "shapes")}[kind]
    network, data = map(request.getfixturevalue, fixtures)
    run: Callable[[list[str]], int] = tool("train_cls" if kind == "classifier" else "train_det").main
    extra = ["--model-ema", "--mixup-alpha", "0.2"] if kind == "classifier" else ["--lr-steps", "1", "-b", "2"]
    extra += ["--amp"] if device == "cuda" else []
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run([*recipe(network, data, whole, device), *extra]) == 0
    monkeypatch.setattr(logging.getLogger("norton_det"), "handlers", [AtLine("Epoch: [1]  [1/")])
    with caplog.at_level("INFO", "norton_det"):
        assert run([*recipe(network, data, stopped, device), *extra]) == EXIT_TERMINATED
    monkeypatch.setattr(logging.getLogger("norton_det"), "handlers", [])
    content = read_file(stopped / "checkpoint.pth")
    assert (content["cuda_rng"] is not None) == torch.cuda.is_initialized()
    assert run([*recipe(network, data, stopped, device), *extra, "--resume", str(stopped / "checkpoint.pth")]) == 0
    expected, resumed = (read_file(folder / "checkpoint.pth") for folder in (whole, stopped))
    assert resumed["epoch"] == expected["epoch"] == 1
    for name, tensor in expected["model"].items():
        # Sums on a GPU are in no fixed order; after a few updates their differences are small still.
        assert relative_difference(resumed["model"][name], tensor) <= TOLERANCE[device] * 50, name


def separate(device: torch.device) -> dict[str, Tensor]:
    """Train a network without batch norms in float64, each process on its part of every batch."""
    torch.manual_seed(rank())  # they begin with the first one's weights
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    net.double().to(device)
    optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
    schedule = make_schedule(optimizer, "steplr", epochs=1)
    state = TrainingState(net, nd.Spec("resnet56_cifar", 3), optimizer, schedule)
    generator = torch.Generator().manual_seed(1)
    count = 8 * torch.cuda.device_count() if device.type == "cuda" else 8
    images = torch.rand(4, count, 3, 16, 16, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (4, count), generator=generator)
    part = slice(rank(), None, world_size())
    batches = [(images[i, part], labels[i, part]) for i in range(4)]
    task = Classification(lambda epoch, start: [], lambda: [], device, 3)
    assert train_one_epoch(data_parallel(net, device), state, batches, task, TrainOptions(clip_grad_norm=1.0))
    loss = torch.tensor(state.loss, dtype=torch.float64)
    return {**{name: tensor.cpu() for name, tensor in net.state_dict().items()}, "loss": loss}


@pytest.fixture(params=DEVICES)
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, list[Any]]:
    """Return the device, and what each process of device_process.py returns: one a GPU, or two on the CPU."""
    device = request.param
    size = torch.cuda.device_count() if device == "cuda" else 2
    script = Path(__file__).with_name("device_process.py")
    ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(size)} for i in range(size)]
    running = [start(script, device, tmp_path, **environment) for environment in ranks]
    logs = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * size, os.linesep.join(logs)
    return device, [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(size)]


def test_processes_train_to_the_weights_of_one(processes: tuple[str, list[Any]]) -> None:
    device, made = processes
    assert [each["backend"] for each in made] == [{"cpu": "gloo", "cuda": "nccl"}[device]] * len(made)
    one = separate(torch.device(device))
    for each in made:
        for name, tensor in one.items():
            assert relative_difference(each["separate"][name], tensor) < 1e-9, name
            assert torch.equal(each["separate"][name], made[0]["separate"][name]), name
        for name, tensor in made[0]["detector"].items():
            assert torch.equal(each["detector"][name], tensor), name
        assert each["mean"] == pytest.approx(sum(range(len(made))) / len(made))


QUICK = ["cp", "compress a seeded network", "deploy", "resnet56_cifar"]
SLOW = ["tucker2", "svd", "norm", "pabs", "random", "reconstruct", "csa", "vbd", "allocate"]
SLOW += ["compress a detector", "deploy a detector", *sorted(NARROW.keys() - set(QUICK))]


@pytest.mark.parametrize("names", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_no_tensor_is_left_on_another_device(names: list[str]) -> None:
    """A device of ours takes the place of a GPU: it is computed on the CPU, but refuses tensors of both."""
    process = start(Path(__file__).with_name("other_device.py"), *names)
    _, log = process.communicate(timeout=600)
    assert process.returncode == 0, log


def test_tensors_of_two_devices_are_found() -> None:
    process = start("-c", MIXED)
    assert "tensors on elsewhere:0, and on the CPU one of shape (3,)" in process.communicate(timeout=300)[1]


MIXED = """
import torch
from other_device import other_device
with other_device() as device:
    there = torch.ones(3, device=device)
    assert there.device == device and (there + 1).cpu().tolist() == [2, 2, 2]
    there + torch.ones(())
    there[torch.tensor([0])]
    there.copy_(torch.ones(3))
    there + torch.ones(3)
"""
