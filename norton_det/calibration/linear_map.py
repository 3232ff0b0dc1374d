"""Layers as linear maps: the inputs that make up each output, and the weights as one matrix (O, D)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.decompositions import Decomposition
from norton_det.errors import UsageError

LAYERS = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d, Decomposition)
"""Classes of layers that are such maps."""


def not_a_map(layer: nn.Module) -> str | None:
    """Return why a layer of :data:`LAYERS` is no map of one set of inputs for all its outputs; None where it is.

    A transposed convolution is one where its stride is its kernel: each output then comes from one position.
    """
    if getattr(layer, "groups", 1) != 1:
        return "a grouped convolution"
    if isinstance(layer, nn.ConvTranspose2d):
        plain = all(set(sizes) <= {value} for sizes, value in _paddings(layer))
        if layer.stride != layer.kernel_size or not plain:
            return "a transposed convolution whose outputs overlap or are padded"
    return None


def _paddings(layer: nn.ConvTranspose2d) -> tuple[tuple[Any, int], ...]:
    return (layer.padding, 0), (layer.output_padding, 0), (layer.dilation, 1)


def as_layer(module: nn.Module) -> Any:
    """Return the layer itself, or the one with the weights of a decomposed layer."""
    return module.to_dense() if isinstance(module, Decomposition) else module


def matrix_of(module: nn.Module) -> Tensor:
    """Return the weights (O, D), float64 on the CPU; of a transposed convolution (O * Kh * Kw, I)."""
    layer = as_layer(module)
    weight = layer.weight.detach().cpu().double()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.movedim(0, -1).flatten(0, -2)
    matrix: Tensor = weight.flatten(1)
    return matrix


def write_matrix(layer: Any, matrix: Tensor) -> None:
    """Set the weights of a layer that is not decomposed to a matrix as of :func:`matrix_of`."""
    if isinstance(layer, nn.ConvTranspose2d):
        matrix = matrix.unflatten(0, layer.weight.shape[1:]).movedim(-1, 0)
    layer.weight.copy_(matrix.view_as(layer.weight))


def by_channel(layer: nn.Module, shift: Tensor) -> Tensor:
    """Return a shift of the rows of the matrix as one of the output channels; the mean where several rows are one's."""
    return shift.view(-1, _rows(layer)).mean(1)


def check_inputs(name: str, layer: nn.Module, x: Tensor) -> None:
    """Check that the channels of a layer's inputs are their second dimension, as :func:`unfold` takes them.

    Raises:
        UsageError: a linear layer that reads more than one row for each image.
    """
    if isinstance(as_layer(layer), nn.Linear) and x.dim() != 2:
        where = f"layer {name!r} reads inputs of shape {tuple(x.shape)}"
        raise UsageError(f"{where}; a linear layer can be fitted only if it reads one row for each image")


def unfold(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the inputs of each output: (N, D, L) for L spatial positions, with D as in :func:`matrix_of`."""
    if isinstance(layer, nn.Linear):
        return x.unsqueeze(2)
    if isinstance(layer, nn.ConvTranspose2d):
        return x.flatten(2)
    conv: Any = layer
    return F.unfold(_padded(conv, x), conv.kernel_size, conv.dilation, 0, conv.stride)


def unfold_at(layer: nn.Module, x: Tensor, positions: Tensor, width: int) -> Tensor:
    """Return the inputs of the outputs at some positions: (N, D, L) of those of :func:`unfold`.

    Args:
        layer: the layer.
        x: its inputs.
        positions: for each of the N rows numbers of the outputs, row by row, int64 (N, L).
        width: number of outputs in a row.
    """
    if not isinstance(layer, nn.Conv2d):
        return at_positions(unfold(layer, x), positions)
    rows, columns = (
        (numbers * stride)[:, :, None] + dilation * torch.arange(size, device=positions.device)
        for numbers, stride, dilation, size in zip(
            (positions // width, positions % width), layer.stride, layer.dilation, layer.kernel_size, strict=True
        )
    )
    each = torch.arange(len(x), device=positions.device)[:, None, None, None]
    patches = _padded(layer, x).movedim(1, 3)[each, rows[:, :, :, None], columns[:, :, None, :]]  # (N, L, Kh, Kw, I)
    return patches.movedim((4, 1), (1, 4)).flatten(1, 3)


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """Return some positions of each row, int64 (N, L), of values (N, D, P)."""
    return values.gather(2, positions[:, None].expand(-1, values.shape[1], -1))


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)


def unfolded_outputs(layer: nn.Module, y: Tensor) -> Tensor:
    """Return the outputs of each position: (N, O, L) for those of :func:`unfold`, with O as in :func:`matrix_of`."""
    if isinstance(layer, nn.ConvTranspose2d):
        return F.unfold(y, layer.kernel_size, stride=layer.stride)
    return y.flatten(2) if y.dim() > 2 else y.unsqueeze(2)


def _rows(layer: nn.Module) -> int:
    """Return how many rows of the matrix are of one output channel, one after another."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return 1
    return layer.kernel_size[0] * layer.kernel_size[1]
