"""Layers as matrices."""

import pytest
import torch
from torch import Tensor, nn

from norton_det.calibration.linear_map import (
    by_channel,
    matrix_of,
    not_a_map,
    unfold,
    unfold_at,
    unfolded_outputs,
    write_matrix,
)

LAYERS: list[tuple[nn.Module, Tensor]] = [
    (nn.Linear(5, 3), torch.randn(4, 5)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2), torch.randn(2, 4, 7, 8)),
    (nn.Conv2d(4, 6, (1, 3), padding="same", padding_mode="reflect"), torch.randn(2, 4, 5, 6)),
    (nn.Conv2d(4, 6, 3, padding=(1, 2), dilation=(1, 2)), torch.randn(2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, 2, 2), torch.randn(2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, (3, 2), (3, 2), bias=False), torch.randn(2, 4, 5, 6)),
]


@pytest.mark.parametrize(("layer", "x"), LAYERS)
@torch.no_grad()
def test_a_layer_is_its_matrix_on_its_unfolded_inputs(layer: nn.Module, x: Tensor) -> None:
    layer, x = layer.double(), x.double()
    shift = torch.zeros(len(matrix_of(layer)), 1) if layer.bias is None else None
    y = unfolded_outputs(layer, layer(x)) - unfolded_outputs(layer, layer(torch.zeros_like(x)))
    torch.testing.assert_close(matrix_of(layer) @ unfold(layer, x), y)
    some = torch.stack([torch.randperm(y.shape[2])[:7] for _ in x])
    expected = torch.stack([row[:, of_row] for row, of_row in zip(unfold(layer, x), some, strict=True)])
    assert torch.equal(unfold_at(layer, x, some, layer(x).shape[-1]), expected)
    if shift is None:
        at_zero = unfolded_outputs(layer, layer(torch.zeros_like(x)))[0, :, 0]
        torch.testing.assert_close(by_channel(layer, at_zero), layer.bias)


@pytest.mark.parametrize(("layer", "x"), LAYERS)
@torch.no_grad()
def test_a_matrix_is_written_as_it_is_read(layer: nn.Module, x: Tensor) -> None:
    matrix = torch.randn_like(matrix_of(layer))
    write_matrix(layer.double(), matrix)
    assert torch.equal(matrix_of(layer), matrix)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(4, 4, 3, 2), "overlap"),
        (nn.ConvTranspose2d(4, 4, 2, 2, padding=1), "overlap"),
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
    ],
)
def test_what_is_no_map_says_why(layer: nn.Module, reason: str) -> None:
    assert reason in (not_a_map(layer) or "")
    assert all(not_a_map(other) is None for other, _ in LAYERS)
