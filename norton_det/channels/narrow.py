"""Narrow a network to the channels that are kept: one small function per layer type."""

from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.errors import UsageError

NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
"""Classes of batch norms."""
RECORDS = (BackboneWithFPN,)
"""Classes whose own part is only a record of how many channels the layers in them write."""


class ChannelMap(nn.Module):
    """A shortcut between channel groups: output channel c is input channel ``index[c]``, or zero where that is -1.

    Rows and columns are subsampled by ``stride``. The index follows from the spec and is no part of the state dict, so
    that plain networks keep their usual names.

    Args:
        index: input channel of each output channel, or -1.
        stride: spatial subsampling.
    """

    index: Tensor

    def __init__(self, index: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        # On the CPU even under torch.device("meta"): the index is data, not a parameter to be filled later.
        self.register_buffer("index", torch.tensor(list(index), dtype=torch.int64, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        mapped = x[:, :, :: self.stride, :: self.stride].index_select(1, self.index.clamp(min=0))
        return mapped.masked_fill((self.index < 0).view(-1, 1, 1), 0)

    def extra_repr(self) -> str:
        """Show sizes rather than the index."""
        return f"{int((self.index >= 0).sum())} of {self.index.numel()} channels mapped, stride={self.stride}"


def narrow_network(net: nn.Module, plan: ChannelPlan, kept: Mapping[str, Tensor]) -> None:
    """Narrow ``net`` in place to the channels in ``kept``.

    Args:
        net: the network, each group as wide as in ``plan``.
        plan: its channel plan.
        kept: group -> kept channels, int64 of shape (width,), ascending. Groups that are not named stay whole.

    Raises:
        UsageError: a layer of the plan is of a type that cannot be narrowed.
    """
    for layer in plan.layers:
        if layer.writes in kept or not kept.keys().isdisjoint(layer.reads):
            inputs = columns_of(layer, plan.widths, kept)
            try:
                narrow(net.get_submodule(layer.name), inputs, kept.get(layer.writes or ""))
            except UsageError as error:
                raise UsageError(f"layer {layer.name!r}: {error}") from None


def positions(groups: Iterable[str], widths: Mapping[str, int], kept: Mapping[str, Tensor]) -> Tensor | None:
    """Return which channels of the concatenation of ``groups`` are kept, int64 (C',), or None where all are."""
    parts: list[Tensor] = []
    offset = 0
    groups = tuple(groups)
    if kept.keys().isdisjoint(groups):
        return None
    for group in groups:
        parts.append(kept.get(group, torch.arange(widths[group])) + offset)
        offset += widths[group]
    return torch.cat(parts)


def columns_of(layer: Layer, widths: Mapping[str, int], kept: Mapping[str, Tensor]) -> Tensor | None:
    """Return which inputs of ``layer`` are kept, int64: channels, or columns of a linear layer; None where all are."""
    channels = positions(layer.reads, widths, kept)
    if channels is None or layer.spatial == 1:
        return channels
    return (channels[:, None] * layer.spatial + torch.arange(layer.spatial)).flatten()


def can_narrow(layer: nn.Module) -> bool:
    """Tell whether :func:`narrow` is exact for a layer of this type, whichever channels are kept.

    Example:
        >>> can_narrow(nn.BatchNorm2d(8)), can_narrow(nn.LayerNorm(8)), can_narrow(nn.GroupNorm(2, 8))
        (True, False, False)
    """
    if isinstance(layer, nn.GroupNorm) and layer.num_groups != layer.num_channels:
        return False  # the statistics of a group are those of several channels
    return narrow.dispatch(type(layer)) is not narrow.dispatch(object)


@singledispatch
def narrow(layer: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> None:
    """Narrow one layer in place.

    Args:
        layer: the layer; the function is chosen by its type.
        inputs: kept input channels, int64 of shape (I',); None keeps all.
        outputs: kept output channels, int64 of shape (O',); None keeps all.

    Raises:
        UsageError: no function is registered for the layer's type.
    """
    raise UsageError(f"cannot narrow a layer of type {type(layer).__name__}")


@narrow.register(nn.Conv1d)
@narrow.register(nn.Conv2d)
@narrow.register(nn.Conv3d)
def _(layer: nn.Conv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if is_depthwise(layer):
        _narrow_depthwise(layer, inputs)
        return
    if layer.groups != 1:
        raise UsageError(f"cannot narrow a convolution with groups={layer.groups}; expected groups=1")
    select_(layer, "weight", 1, inputs)
    select_(layer, "weight", 0, outputs)
    select_(layer, "bias", 0, outputs)
    layer.out_channels, layer.in_channels = layer.weight.shape[:2]


@narrow.register(nn.ConvTranspose1d)
@narrow.register(nn.ConvTranspose2d)
@narrow.register(nn.ConvTranspose3d)
def _(layer: nn.ConvTranspose2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if is_depthwise(layer):
        _narrow_depthwise(layer, inputs)
        return
    if layer.groups != 1:
        raise UsageError(f"cannot narrow a transposed convolution with groups={layer.groups}; expected groups=1")
    select_(layer, "weight", 0, inputs)
    select_(layer, "weight", 1, outputs)
    select_(layer, "bias", 0, outputs)
    layer.in_channels, layer.out_channels = layer.weight.shape[:2]


@narrow.register
def _(layer: nn.Linear, inputs: Tensor | None, outputs: Tensor | None) -> None:
    select_(layer, "weight", 1, inputs)
    select_(layer, "weight", 0, outputs)
    select_(layer, "bias", 0, outputs)
    layer.out_features, layer.in_features = layer.weight.shape


@narrow.register(nn.modules.batchnorm._NormBase)
@narrow.register(FrozenBatchNorm2d)
def _(layer: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        select_(layer, name, 0, inputs)
    if inputs is not None and isinstance(layer, nn.modules.batchnorm._NormBase):
        layer.num_features = inputs.numel()


@narrow.register
def _(layer: nn.GroupNorm, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if not can_narrow(layer):
        groups, channels = layer.num_groups, layer.num_channels
        raise UsageError(f"cannot narrow a GroupNorm with num_groups={groups}; expected num_groups={channels}")
    for name in ("weight", "bias"):
        select_(layer, name, 0, inputs)
    if inputs is not None:
        layer.num_groups = layer.num_channels = inputs.numel()


@narrow.register
def _(layer: nn.PReLU, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if layer.num_parameters > 1 and inputs is not None:
        select_(layer, "weight", 0, inputs)
        layer.num_parameters = inputs.numel()


@narrow.register
def _(layer: BackboneWithFPN, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if inputs is not None:
        layer.out_channels = inputs.numel()


@narrow.register
def _(layer: ChannelMap, inputs: Tensor | None, outputs: Tensor | None) -> None:
    select_(layer, "index", 0, outputs)
    if inputs is not None:
        position = torch.full((max(int(inputs.max()), int(layer.index.max())) + 1,), -1)
        position[inputs] = torch.arange(inputs.numel())
        index = layer.index.cpu()
        layer.index = torch.where(index >= 0, position[index.clamp(min=0)], index).to(layer.index.device)


def is_depthwise(layer: nn.Module) -> bool:
    """Tell whether a convolution maps each channel to one of its own.

    Example:
        >>> is_depthwise(nn.Conv2d(8, 8, 3, groups=8)), is_depthwise(nn.Conv2d(8, 16, 3, groups=8))
        (True, False)
    """
    sizes = [getattr(layer, name, 1) for name in ("groups", "in_channels", "out_channels")]
    return sizes[0] > 1 and len(set(sizes)) == 1


def _narrow_depthwise(layer: nn.Conv2d | nn.ConvTranspose2d, kept: Tensor | None) -> None:
    for name in ("weight", "bias"):
        select_(layer, name, 0, kept)
    layer.groups = layer.in_channels = layer.out_channels = layer.weight.shape[0]


def select_(layer: nn.Module, name: str, dim: int, index: Tensor | None) -> None:
    """Replace the parameter or buffer ``name`` of ``layer`` by its entries ``index`` along ``dim``.

    Nothing is done where ``index`` or the tensor is None (a convolution without bias).
    """
    tensor = getattr(layer, name)
    if index is None or tensor is None:
        return
    selected = tensor.detach().index_select(dim, index.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        selected = nn.Parameter(selected, requires_grad=tensor.requires_grad)
    setattr(layer, name, selected)
