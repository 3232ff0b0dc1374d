"""Whatever a network is made of: what is deployed computes the same."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_norms import with_statistics
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.decompositions import CPConv2d, LowRank, TuckerConv2d
from norton_det.deployment.deploy import deploy
from norton_det.runtime.outputs import relative_difference

CHANNELS = 4


class Squared(nn.BatchNorm2d):
    """A norm and more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class Halved(nn.Conv2d):
    """A convolution with other weights than its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / 2, self.bias)


class OverRows(nn.Module):
    """A linear layer over the rows of an image, and a norm over its channels."""

    def __init__(self, linear: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.norm = linear or nn.Linear(8, 8), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **options: Any) -> nn.Conv2d:
    return kind(CHANNELS, CHANNELS, 3, padding=1, **options)


LAYERS = {
    "conv": conv,
    "without bias": lambda: conv(bias=False),
    "grouped": lambda: conv(groups=2),
    "reflected": lambda: conv(padding_mode="reflect"),
    "other weights": lambda: conv(Halved),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
    "cp": lambda: CPConv2d.from_conv(conv(), 2),
    "tucker": lambda: TuckerConv2d.from_conv(conv(), 2),
    "svd": lambda: LowRank.from_layer(conv(bias=False), 2),
    "linear": lambda: nn.Linear(8, 8),
    "svd of a linear": lambda: LowRank.from_layer(nn.Linear(8, 8), 3),
    "over rows": OverRows,
    "svd over rows": lambda: OverRows(LowRank.from_layer(nn.Linear(8, 8), 3)),
}
NORMS = {
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "not affine": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "and more": lambda: Squared(CHANNELS),
    "frozen": lambda: FrozenBatchNorm2d(CHANNELS, eps=0.0),
    "other": lambda: nn.GroupNorm(2, CHANNELS),
    "none": nn.Identity,
}
BLOCKS = st.tuples(
    st.sampled_from([*LAYERS]), st.sampled_from([*NORMS]), st.sampled_from(["", "skip", "keep", "again"])
)


class Network(nn.Module):
    """Layers and norms; a layer's output is also added ("skip") or returned ("keep"), or both run again."""

    def __init__(self, blocks: list[tuple[str, str, str]]) -> None:
        super().__init__()
        self.uses = [use for _, _, use in blocks]
        self.layers = nn.ModuleList(LAYERS[layer]() for layer, _, _ in blocks)
        self.norms = nn.ModuleList(NORMS[norm]() for _, norm, _ in blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = []
        for use, layer, norm in zip(self.uses, self.layers, self.norms, strict=True):
            y = layer(x)
            x = norm(y)
            if use == "skip":
                x = x + y
            elif use == "keep":
                kept.append(y)
            elif use == "again":
                x = norm(layer(x))
            x = x.clamp(-5, 5)
        return [x, *kept]


@settings(max_examples=25, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=4), training=st.booleans())
def test_what_is_deployed_is_equal(blocks: list[tuple[str, str, str]], training: bool) -> None:
    torch.manual_seed(0)
    net = with_statistics(Network(blocks)).train(training)
    fast = deploy(net, torch.randn(2, CHANNELS, 8, 8), repeats=1)
    assert net.training == training
    other = torch.randn(3, CHANNELS, 8, 8)
    with torch.no_grad():
        assert relative_difference(fast(other), net.eval()(other)) < 1e-4
    norms = {f"norms.{i}" for i, (_, norm, _) in enumerate(blocks) if norm not in ("other", "none")}
    norms |= {f"layers.{i}.norm" for i, (layer, _, _) in enumerate(blocks) if layer.endswith("over rows")}
    assert norms <= fast.deployment.folded.keys() | fast.deployment.unchanged.keys()
