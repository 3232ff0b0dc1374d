"""Layers with correlated inputs and their regressions, shared by the tests of fits."""

import torch
from torch import Tensor, nn

import norton_det as nd
from norton_det.linalg.least_squares import Regression
from norton_det.models import ARCHITECTURES

OUT, IN, K = 6, 8, 3


def correlated(samples: int, dead: int = 0) -> Tensor:
    """Return inputs (samples, IN * K * K) that lie near a subspace; the first ``dead`` channels are zero."""
    generator = torch.Generator().manual_seed(1)
    size = IN * K * K
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64) / torch.arange(1, size + 1)
    x = torch.randn(samples, size, generator=generator, dtype=torch.float64) @ mixing
    x.view(samples, IN, -1)[:, :dead] = 0
    return x


def regression(weight: Tensor, x: Tensor, y: Tensor | None = None) -> Regression:
    """Return the problem of y, by default the outputs of ``weight``, from x with ``weight`` as prior."""
    y = x @ weight.mT if y is None else y
    return Regression(weight, x.mT @ x / len(x), y.mT @ x / len(x), y.square().mean(0))


def network(arch: str) -> tuple[nn.Module, nd.Spec]:
    """Return a narrow random network whose batch norms have seen data, in double precision."""
    torch.manual_seed(0)
    net, spec = nd.prune(ARCHITECTURES[arch].build(10).double(), arch, "[0.]+[0.8]*56", criterion="random")
    net.train()(torch.randn(16, 3, 32, 32, dtype=torch.float64))
    return net.eval(), spec


def images(count: int = 4) -> Tensor:
    """Return images for :func:`network`."""
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)
