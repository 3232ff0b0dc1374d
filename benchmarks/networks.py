"""Benchmarks of compressed networks against dense ones: inference, both deployed, and training steps."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.compare import CASES, Case, Settings, Side
from benchmarks.detector import DETECTORS, watched
from benchmarks.kinds import time_kinds
from norton_det.config import read_config
from norton_det.cost.complexity import count_complexity
from norton_det.deployment.deploy import deploy
from norton_det.deployment.record import MEMORY_FORMATS
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.runtime.timing import time_alternating
from norton_det.spec import Spec
from norton_det.structure.build import build
from norton_det.structure.settings import spec_from_configuration
from norton_det.training.implementations import set_fastest_implementations

ROW = "imagenet/resnet50_0.92g.yaml"
"""The config of the backbone."""
_TRIALS = 4  # number of runs with which the memory format of training is chosen


def backbones(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``backbone``."""
    common = {"config": str(settings.configs / ROW), "device": settings.device, "amp": settings.amp}
    for size in settings.sizes:
        for batch in settings.batch_sizes:
            for case in ("backbone", "backbone-eager", "backbone-rank4"):
                yield case, {"size": size, "batch": batch, **common}


def detectors(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``detector``."""
    for kind, config in DETECTORS.items():
        path = str(settings.configs / "coco" / config)
        yield "detector", {"kind": kind, "config": path, "device": settings.device, "amp": settings.amp}


def train_steps(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the cases of the benchmark ``train-step``: every published classifier."""
    for folder, batch in (("cifar10", settings.train_batch), ("imagenet", max(1, settings.train_batch // 8))):
        for path in sorted((settings.configs / folder).glob("*.yaml")):
            yield "train-step", {"config": str(path), "batch": batch, "device": settings.device, "amp": settings.amp}


def _forward(net: Callable[..., object], inputs: Any, amp: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), _autocast(inputs, amp):
            net(inputs)

    return run


def _autocast(inputs: Any, amp: bool) -> torch.autocast:
    first = inputs if isinstance(inputs, torch.Tensor) else inputs[0]
    return torch.autocast(first.device.type, torch.bfloat16, enabled=amp)


@lru_cache(maxsize=3)  # shared by the cases of one image size
def _deployed(text: str, batch: int, size: int, device: str, amp: bool) -> tuple[Any, dict[str, list[float]]]:
    images = torch.randn(batch, 3, size, size, device=device)
    with _autocast(images, amp):
        net = deploy(build(Spec.from_json(text), device), images)
    return net, time_kinds(net)


def _backbone(
    name: str, ours: Spec, other: Spec, *, batch: int, size: int, device: str, amp: bool, eager: bool
) -> Case:
    images = torch.randn(batch, 3, size, size, device=device)

    def side(spec: Spec, net: nn.Module, parts: dict[str, list[float]], implementations: str = "") -> Side:
        def detail() -> str:
            seconds = median(map(sum, zip(*parts.values(), strict=True)))
            return f"{implementations}{batch * count_complexity(spec, size).macs / seconds / 1e9:.0f}G MACs a second"

        return Side(_forward(net, images, amp), detail, parts)

    def deployed(spec: Spec) -> Side:
        net, parts = _deployed(spec.to_json(), batch, size, device, amp)
        return side(spec, net, parts, _implementations(net.deployment) if spec.ranks else "")

    def plain() -> Side:
        net = build(other, device).eval()
        return side(other, net, time_kinds(net))

    return Case(f"{name}, {batch} x {size}x{size}", lambda: deployed(ours), plain if eager else lambda: deployed(other))


def _implementations(done: Any) -> str:
    implementations = Counter(block.implementation for block in done.blocks)
    return f"{', '.join(f'{count} {name}' for name, count in implementations.most_common())}, {done.memory_format}, "


def backbone(config: str, **options: Any) -> Case:
    """Return a case: the ResNet-50 of a config, deployed; other: the dense one, deployed the same way."""
    spec = read_config(config).spec()
    return _backbone("backbone 0.92G; other: dense", spec, _dense(spec), eager=False, **options)


def backbone_eager(config: str, **options: Any) -> Case:
    """Return a case: the ResNet-50 of a config, deployed; other: the same with three convolutions and a sum a block."""
    spec = read_config(config).spec()
    return _backbone("backbone 0.92G; other: plain blocks", spec, spec, eager=True, **options)


def backbone_rank4(config: str, **options: Any) -> Case:
    """Return a case: a ResNet-50 of rank 4 without pruning, deployed; other: the dense one, deployed the same way."""
    dense = _dense(read_config(config).spec())
    rank4 = spec_from_configuration("resnet50", 4, None)
    return _backbone("backbone of rank 4, unpruned; other: dense", rank4, dense, eager=False, **options)


def _dense(spec: Spec) -> Spec:
    return Spec(spec.arch, spec.num_classes)


def detector(kind: str, config: str, device: str = "cpu", amp: bool = False, size: int = Detection.image_size) -> Case:
    """Return a case: an R-CNN with fixed proposals, deployed, by parts; other: the dense one, deployed the same way."""
    spec = read_config(config).spec()
    images = [torch.rand(3, size, size, device=device)]

    def side(spec: Spec) -> Side:
        with _autocast(images, amp):
            net, parts = watched(deploy(build(spec, device), images, repeats=2))
        return Side(_forward(net, images, amp), parts=parts)

    ratio = count_complexity(_dense(spec)).macs / count_complexity(spec).macs
    name = f"detector {kind} at {size}x{size} ({ratio:.2f} times fewer MACs); other: dense"
    return Case(name, lambda: side(spec), lambda: side(_dense(spec)))


def train_step(config: str, batch: int, device: str = "cpu", amp: bool = False) -> Case:
    """Return a case: a training step in the fastest memory format; other: the same of the dense network."""
    spec = read_config(config).spec()
    size = ARCHITECTURES[spec.arch].image_size
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(spec.num_classes, (batch,), device=device)

    def side(spec: Spec) -> Side:
        steps = {
            name: _step(build(spec, device), images, labels, memory_format, amp)
            for name, memory_format in MEMORY_FORMATS.items()
        }
        seconds = time_alternating({name: side.run for name, side in steps.items()}, _TRIALS, warmup=2)
        return steps[min(seconds, key=lambda name: min(seconds[name]))]  # the first steps allocate memory

    ratio = count_complexity(_dense(spec)).macs / count_complexity(spec).macs
    name = f"train-step {Path(config).stem}, batch {batch} ({ratio:.2f} times fewer MACs); other: dense"
    return Case(name, lambda: side(spec), lambda: side(_dense(spec)))


def _step(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, memory_format: torch.memory_format, amp: bool
) -> Side:
    net.to(memory_format=memory_format).train()
    images = images.contiguous(memory_format=memory_format)
    choices = set_fastest_implementations(net, images, memory_format=memory_format, amp=amp)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        with _autocast(images, amp):
            loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    implementations = Counter(choice.implementation for choice in choices)
    return Side(
        run, lambda: ", ".join(f"{count} {implementation}" for implementation, count in implementations.most_common())
    )


for _name, _case in (
    ("backbone", backbone),
    ("backbone-eager", backbone_eager),
    ("backbone-rank4", backbone_rank4),
    ("detector", detector),
    ("train-step", train_step),
):
    CASES.register(_name, _case)
