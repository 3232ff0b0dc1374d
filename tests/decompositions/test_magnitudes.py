"""Filters of any magnitude and dtype have a finite fit in that dtype, no worse than none."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from norton_det.decompositions import DECOMPOSITIONS

DTYPES = {"float16": (-6, 4), "bfloat16": (-36, 38), "float32": (-36, 38), "float64": (-200, 300)}
"""Decimal exponents of weights: from what is no subnormal number to nearly the largest one."""


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    name = draw(st.sampled_from(list(DTYPES)))
    low, high = DTYPES[name]
    out, inputs, size = draw(st.sampled_from([(1, 1, 1), (2, 3, 3), (6, 1, 2), (8, 5, 3), (64, 32, 1)]))
    conv = nn.Conv2d(inputs, out, size, dtype=getattr(torch, name))
    shape = draw(st.sampled_from([(1, 1, 1, 1), (out, 1, 1, 1), (1, inputs, 1, 1), (out, inputs, size, size)]))
    exponents = st.integers(low, high - 1) | st.sampled_from([low, high - 1])
    ends = draw(st.tuples(exponents, exponents).map(sorted))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = 10 ** (ends[0] + (ends[1] - ends[0]) * torch.rand(shape, generator=generator, dtype=torch.float64))
    values = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
    values = values.sign() if draw(st.booleans()) else values.clamp(-3, 3)
    with torch.no_grad():
        conv.weight.copy_(values * scale * draw(st.sampled_from([0.0, 1.0, 1.0, 1.0])))
    return conv


@pytest.mark.parametrize("method", list(DECOMPOSITIONS))
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions(), rank=st.integers(1, 4))
def test_every_magnitude_has_a_fit(method: str, conv: nn.Conv2d, rank: int) -> None:
    block = DECOMPOSITIONS[method].from_conv(conv, rank)
    assert all(parameter.isfinite().all() for parameter in block.parameters())
    largest = conv.weight.detach().abs().max().double().clamp(min=1e-300)
    weight, fitted = (layer.weight.detach().double() / largest for layer in (conv, block.to_dense()))
    assert fitted.isfinite().all()
    limits = torch.finfo(conv.weight.dtype)
    rounding = 20 * limits.eps + math.sqrt(weight.numel()) * limits.tiny / largest
    assert (weight - fitted).norm() <= (1 + rounding) * weight.norm()
