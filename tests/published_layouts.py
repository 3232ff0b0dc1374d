"""The networks of the publication's own implementation, written once more: their tensors, and what they compute."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def norm(state: State, name: str, width: int) -> None:
    state |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width) / 10}
    state |= {f"{name}.running_mean": torch.randn(width) / 10, f"{name}.running_var": torch.rand(width) + 0.5}
    state[f"{name}.num_batches_tracked"] = torch.tensor(1)


def conv(state: State, name: str, inputs: int, outputs: int, size: int, rank: int = 0, bias: bool = False) -> None:
    if rank:
        terms = rank * outputs
        state[f"{name}.feature.pointwise.weight"] = torch.randn(terms, inputs, 1, 1) * (2 / inputs / rank) ** 0.5
        state[f"{name}.feature.vertical.weight"] = torch.randn(terms, 1, size, 1) * size**-0.5
        state[f"{name}.feature.horizontal.weight"] = torch.randn(terms, 1, 1, size) * size**-0.5
    else:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) * (2 / inputs / size**2) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(outputs) / 10


def linear(state: State, name: str, inputs: int, outputs: int) -> None:
    state |= {f"{name}.weight": torch.randn(outputs, inputs) / inputs**0.5, f"{name}.bias": torch.randn(outputs)}


def width(full: int, rate: float) -> int:
    return int(full * (1 - rate))


def resnet50(rates: Sequence[float], rank: int) -> State:
    state: State = {}
    stages, rest = (
        [width(w, r) for w, r in zip((256, 512, 1024, 2048), [*rates[1:4], 0.0], strict=True)],
        list(rates[4:]),
    )
    source = width(64, rates[0])
    conv(state, "conv1", 3, source, 7)
    norm(state, "bn1", source)
    for i, (blocks, stage) in enumerate(zip((3, 4, 6, 3), stages, strict=True), 1):
        for b in range(blocks):
            name, inner = f"layer{i}.{b}", width(64 * 2 ** (i - 1), rest.pop(0))
            sizes = ((source, inner, 1, 0), (inner, inner, 3, rank), (inner, stage, 1, 0))
            for j, (inputs, outputs, size, terms) in enumerate(sizes, 1):
                conv(state, f"{name}.conv{j}", inputs, outputs, size, terms)
                norm(state, f"{name}.bn{j}", outputs)
            if b == 0:
                conv(state, f"{name}.downsample.0", source, stage, 1)
                norm(state, f"{name}.downsample.1", stage)
            source = stage
    linear(state, "fc", source, 7)
    return state


def resnet_cifar(blocks: int, rates: Sequence[float], rank: int) -> State:
    state: State = {}
    stages, rest = [width(w, r) for w, r in zip((16, 32, 64), [*rates[1:3], 0.0], strict=True)], list(rates[3:])
    source = width(16, rates[0])
    conv(state, "conv1", 3, source, 3)
    norm(state, "bn1", source)
    for i, stage in enumerate(stages, 1):
        for b in range(blocks):
            name, inner = f"layer{i}.{b}", width(16 * 2 ** (i - 1), rest.pop(0))
            for j, (inputs, outputs) in enumerate(((source, inner), (inner, stage)), 1):
                conv(state, f"{name}.conv{j}", inputs, outputs, 3, rank)
                norm(state, f"{name}.bn{j}", outputs)
            source = stage
    linear(state, "fc" if blocks == 9 else "linear", source, 10)
    return state


VGG = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512)


def vgg(rates: Sequence[float], rank: int) -> State:
    state: State = {}
    source, rest = 3, list(rates)
    for i, full in enumerate(VGG):
        if full is not None:
            outputs = width(full, rest.pop(0))
            conv(state, f"features.conv{i}", source, outputs, 3, rank, bias=True)
            norm(state, f"features.norm{i}", outputs)
            source = outputs
    linear(state, "classifier.linear1", source, 512)
    norm(state, "classifier.norm1", 512)
    linear(state, "classifier.linear2", 512, 10)
    return state


def densenet(rates: Sequence[float], rank: int) -> State:
    state: State = {}
    conv(state, "conv1", 3, 24, 3, rank)
    source, rest = 24, list(rates[1:])
    for k in (1, 2, 3):
        for i in range(12):
            grown = width(12, rest.pop(0))
            norm(state, f"dense{k}.{i}.bn1", source)
            conv(state, f"dense{k}.{i}.conv1", source, grown, 3, rank)
            source += grown
        if k < 3:
            outputs = width(source, rest.pop(0))
            norm(state, f"trans{k}.bn1", source)
            conv(state, f"trans{k}.conv1", source, outputs, 1)
            source = outputs
    norm(state, "bn", source)
    linear(state, "fc", source, 10)
    return state


class Run:
    """Computes with the tensors of a state dict, by name; factors are multiplied out term by term."""

    def __init__(self, state: State, rank: int) -> None:
        self.state, self.rank = state, rank

    def kernel(self, name: str) -> Tensor:
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        a, b, c = (self.state[f"{name}.feature.{part}.weight"] for part in ("pointwise", "vertical", "horizontal"))
        terms = torch.einsum("ti,th,tw->tihw", a[:, :, 0, 0], b[:, 0, :, 0], c[:, 0, 0, :])
        return sum(terms.chunk(self.rank))  # all filters' first terms, then their second ones

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = self.kernel(name)
        return F.conv2d(x, kernel, self.state.get(f"{name}.bias"), stride, kernel.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.batch_norm(
            x, *(self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def run_resnet50(run: Run, x: Tensor) -> Tensor:
    x = F.max_pool2d(F.relu(run.norm(run.conv(x, "conv1", 2), "bn1")), 3, 2, 1)
    for i, blocks in enumerate((3, 4, 6, 3), 1):
        for b in range(blocks):
            name, stride = f"layer{i}.{b}", 2 if i > 1 and b == 0 else 1
            y = F.relu(run.norm(run.conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = F.relu(run.norm(run.conv(y, f"{name}.conv2", stride), f"{name}.bn2"))
            y = run.norm(run.conv(y, f"{name}.conv3"), f"{name}.bn3")
            x = run.norm(run.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1") if b == 0 else x
            x = F.relu(x + y)
    return run.linear(x.mean((2, 3)), "fc")


def run_resnet_cifar(blocks: int) -> Callable[[Run, Tensor], Tensor]:
    def forward(run: Run, x: Tensor) -> Tensor:
        x = F.relu(run.norm(run.conv(x, "conv1"), "bn1"))
        for i in (1, 2, 3):
            for b in range(blocks):
                name, stride = f"layer{i}.{b}", 2 if i > 1 and b == 0 else 1
                y = F.relu(run.norm(run.conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                y = run.norm(run.conv(y, f"{name}.conv2"), f"{name}.bn2")
                more = y.shape[1] - x.shape[1]
                x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more // 2, more - more // 2))
                x = F.relu(x + y)
        return run.linear(x.mean((2, 3)), "fc" if blocks == 9 else "linear")

    return forward


def run_vgg(run: Run, x: Tensor) -> Tensor:
    for i, full in enumerate(VGG):
        if full is None:
            x = F.max_pool2d(x, 2)
        else:
            x = F.relu(run.norm(run.conv(x, f"features.conv{i}"), f"features.norm{i}"))
    x = run.linear(F.avg_pool2d(x, 2).flatten(1), "classifier.linear1")
    return run.linear(F.relu(run.norm(x, "classifier.norm1")), "classifier.linear2")


def run_densenet(run: Run, x: Tensor) -> Tensor:
    x = run.conv(x, "conv1")
    for k in (1, 2, 3):
        for i in range(12):
            name = f"dense{k}.{i}"
            x = torch.cat([x, run.conv(F.relu(run.norm(x, f"{name}.bn1")), f"{name}.conv1")], 1)
        if k < 3:
            x = F.avg_pool2d(run.conv(F.relu(run.norm(x, f"trans{k}.bn1")), f"trans{k}.conv1"), 2)
    return run.linear(F.relu(run.norm(x, "bn")).mean((2, 3)), "fc")
