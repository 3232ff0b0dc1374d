"""Operators that compute with channels: elementwise, by the weights of layers, or over positions."""

import re
from collections.abc import Callable

from torch import Tensor, nn

from norton_det.channels.following.follower import Call, Channels, Followed, Follower, short, tensors_of
from norton_det.channels.narrow import is_depthwise


def unknown(follower: Follower, call: Call) -> None:
    """Fix the channels: what the operator does with them is not known."""
    follower.fix(call.inputs, f"they are an argument of {short(call.name)}")


def nothing(follower: Follower, call: Call) -> None:
    """Do nothing: the operator looks at no values and returns no channels."""


def pointwise(follower: Follower, call: Call) -> None:
    """Unite the channels that meet. Their dimension, counted from the last one, must be the same."""
    held = [(tensor, channels) for tensor in call.inputs if (channels := follower.of(tensor))]
    dims = {channels.dim - tensor.dim() for tensor, channels in held}
    sizes = {len(channels.labels) for _, channels in held}
    if len(dims) != 1 or len(sizes) != 1:
        follower.fix(call.inputs, f"they meet others along different dimensions in {short(call.name)}")
        return
    (dim,) = dims
    first = held[0][1].labels
    for tensor in call.inputs:
        _meet(follower, first, tensor, dim, call)
    for out in tensors_of(call.out):
        follower.give(out, Channels(out.dim() + dim, first))


def _meet(follower: Follower, labels: Tensor, tensor: Tensor, dim: int, call: Call) -> None:
    """Unite ``labels`` with what a tensor holds along ``dim``, counted from the last dimension."""
    channels = follower.of(tensor)
    if channels:
        follower.labels.unite(labels, channels.labels, meets(call, "others of no layer"), elementwise=True)
    elif tensor.dim() >= -dim and tensor.shape[dim] > 1:
        follower.labels.fix(labels, meets(call, follower.describe(tensor)))


def meets(call: Call, what: str) -> str:
    """Return the reason why channels stay that meet ``what``."""
    return f"they meet {what} in {short(call.name)}"


def norm(follower: Follower, call: Call) -> None:
    """Unite the channels of a map with those of a norm's parameters."""
    tensor, arguments = call.arguments["input"], call.arguments
    channels = follower.of(tensor)
    if channels and (channels.dim != 1 or arguments.get("group", tensor.shape[1]) != tensor.shape[1]):
        follower.fix(tensor, f"{short(call.name)} normalises several of them together")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (parameter := arguments.get(name)) is not None:
            labels, own = follower.along(tensor, 1), follower.along(parameter, 0)
            follower.labels.unite(labels, own, meets(call, follower.describe(parameter)))
    follower.give(tensors_of(call.out)[0], channels)


def layer_norm(follower: Follower, call: Call) -> None:
    """Fix the channels if they are normalised together; keep them otherwise."""
    tensor = call.arguments["input"]
    channels = follower.of(tensor)
    if channels and channels.dim >= tensor.dim() - len(call.arguments["normalized_shape"]):
        follower.fix(tensor, f"{short(call.name)} normalises several of them together")
    follower.give(call.out[0], channels)


def layer_map(input_name: str, weight_name: str) -> Callable[[Follower, Call], None]:
    """Return the rule of an operator that maps channels to others by the weight of a layer."""

    def apply(follower: Follower, call: Call) -> None:
        given, weight = call.arguments[input_name], call.arguments[weight_name]
        layer = _layer_of(follower, weight, call)
        if layer is None:
            follower.fix(call.inputs, f"they are an argument of {short(call.name)}, whose weight is of no layer")
            return
        dim = given.dim() - 1 if isinstance(layer.module, nn.Linear) else 1
        if any(follower.owner(tensor) is None for tensor in call.inputs if tensor is not given):
            layer.obstacle = f"the bias of {layer.name} is computed"
        follower.read(layer, given, dim)
        if is_depthwise(layer.module):
            follower.give(call.out, follower.of(given))
            return
        if (groups := call.arguments.get("groups", 1)) > 1:
            layer.obstacle = f"{layer.name} is a convolution with groups={groups}"
        follower.write(layer, call.out, dim)

    return apply


def _layer_of(follower: Follower, weight: Tensor, call: Call) -> Followed | None:
    """Return the layer whose whole weight, or its transpose, an operator takes, and no tensor of another layer."""
    owners = [owner for tensor in call.inputs if (owner := follower.owner(tensor))]
    layers = {layer.name: layer for layer, _ in owners}
    if len(layers) == 1 and follower.owner(weight):
        (layer,) = layers.values()
        whole = getattr(layer.module, "weight", None)
        if isinstance(layer.module, nn.Linear):
            whole = layer.module.weight.t()
        if isinstance(whole, Tensor) and (weight.shape, weight.stride()) == (whole.shape, whole.stride()):
            return layer
    for layer, name in owners:
        follower.misuse(layer, name, call)
    return None


def per_channel(follower: Follower, call: Call) -> None:
    """Keep the channels of the first argument: the operator works on each by itself, over its last dimensions."""
    first, *others = call.inputs
    follower.fix(others, f"they are an argument of {short(call.name)}")
    channels = follower.of(first)
    digits = re.search(r"(\d)d", call.name)
    last = int(digits[1]) if digits else first.dim() - 2
    if channels and channels.dim == first.dim() - last - 1:
        for out in tensors_of(call.out):
            follower.give(out, Channels(out.dim() - last - 1, channels.labels))
    else:
        unknown(follower, call)


def rows(follower: Follower, call: Call) -> None:
    """Keep the channels of the first argument, a table whose rows are combined."""
    table, *others = call.inputs
    follower.fix(others, f"they are an argument of {short(call.name)}")
    channels = follower.of(table)
    if channels and channels.dim == 1:
        out = tensors_of(call.out)[0]
        follower.give(out, Channels(out.dim() - 1, channels.labels))
    else:
        unknown(follower, call)


def reduce(follower: Follower, call: Call) -> None:
    """Keep the channels if the operator does not reduce over them."""
    (tensor,) = call.inputs
    channels, dims = follower.of(tensor), call.arguments.get("dim")
    dims = {dim % tensor.dim() for dim in ([dims] if isinstance(dims, int) else dims or range(tensor.dim()))}
    assert channels is not None
    if channels.dim in dims:
        follower.fix(tensor, f"{short(call.name)} reduces over them")
        return
    for out in tensors_of(call.out):
        fewer = 0 if out.dim() == tensor.dim() else sum(dim < channels.dim for dim in dims)
        follower.give(out, Channels(channels.dim - fewer, channels.labels))


def along(follower: Follower, call: Call) -> None:
    """Keep the channels if the operator does not work along them."""
    (tensor,) = call.inputs
    channels = follower.of(tensor)
    assert channels is not None
    if channels.dim == call.arguments["dim"] % tensor.dim():
        follower.fix(tensor, f"{short(call.name)} is along them")
    for out in tensors_of(call.out):
        follower.give(out, channels)
