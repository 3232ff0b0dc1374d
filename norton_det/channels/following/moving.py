"""Operators that move channels: concatenation, padding, writing into tensors, views and indexing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from norton_det.channels.following.computing import meets, pointwise, unknown
from norton_det.channels.following.follower import Call, Channels, Follower, short, tensors_of


def concatenate(follower: Follower, call: Call) -> None:
    """Concatenate channels, or unite them where they are concatenated along another dimension."""
    tensors = [tensor for tensor in call.inputs if tensor.dim() > 1 or tensor.numel()]  # cat ignores an empty one
    stacked = short(call.name) == "stack"
    held = [(tensor, channels) for tensor in tensors if (channels := follower.of(tensor))]
    dims = {channels.dim for _, channels in held}
    if len(dims) != 1:
        unknown(follower, call)
        return
    (dim,) = dims
    along = call.arguments.get("dim", 0) % call.out.dim()
    if along == dim and not stacked:
        labels = torch.cat([follower.along(tensor, dim) for tensor in tensors])
        follower.give(call.out, Channels(dim, labels))
        return
    first = held[0][1].labels
    for tensor in tensors:
        _read_alike(follower, first, tensor, call)
    follower.give(call.out, Channels(dim + (stacked and along <= dim), first))


def _read_alike(follower: Follower, labels: Tensor, tensor: Tensor, call: Call) -> None:
    """Unite channels that lie side by side in one tensor, and so are read by the same layers."""
    channels = follower.of(tensor)
    given = channels.labels if channels else torch.zeros_like(labels)
    follower.labels.unite(labels, given, meets(call, follower.describe(tensor)))


def pad(follower: Follower, call: Call) -> None:
    """Keep the channels, with constants before and after them if they are padded themselves."""
    tensor = call.arguments["self"]
    channels, pad = follower.of(tensor), list(call.arguments["pad"])
    assert channels is not None
    from_last = 2 * (tensor.dim() - 1 - channels.dim)
    before, after = (*pad[from_last : from_last + 2], 0, 0)[:2]
    labels = torch.nn.functional.pad(channels.labels, (before, after))
    follower.give(call.out, Channels(channels.dim, labels))


def put(follower: Follower, call: Call) -> None:
    """Write rows of channels into a tensor of constants, or into one that holds channels."""
    target, values, indices = (call.arguments[name] for name in ("self", "values", "indices"))
    source, present = follower.of(values), follower.of(target)
    follower.fix(indices, f"they are an index in {short(call.name)}")
    dims = {at.dim - of.dim() for at, of in ((source, values), (present, target)) if at}
    dim = target.dim() + dims.pop() if dims else 0
    at_channels = dims or any(index is not None for index in indices[dim:])
    if at_channels or (source and not (_covers_storage(target) and target.shape[dim] == len(source.labels))):
        follower.fix([target, values], "they are written into a part of a tensor")
    elif source:
        if present:
            _read_alike(follower, source.labels, target, call)
        follower.give(call.out, Channels(dim, source.labels))
    elif values.numel() > 1:
        follower.fix(target, meets(call, follower.describe(values)))
    else:
        follower.give(call.out, present)


def _covers_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def copy(follower: Follower, call: Call) -> None:
    """Give the channels of one tensor to another, unless that is a part of a larger one."""
    target, source = call.arguments["self"], call.arguments["src"]
    if follower.of(source) and not (_covers_storage(target) and target.shape == source.shape):
        follower.fix([target, source], "they are written into a part of a tensor")
    elif follower.of(source) and not follower.of(target):
        follower.give(target, follower.of(source))
    else:
        pointwise(follower, call)


def rearrange(follower: Follower, call: Call) -> None:
    """Run the operator on the labels of all elements of its first argument, and see along which dimension they lie."""
    tensor, *others = call.inputs
    channels = follower.of(tensor)
    follower.fix(others, f"they are an index in {short(call.name)}")
    if channels is None:
        return
    shape = [-1 if dim == channels.dim else 1 for dim in range(tensor.dim())]
    elements = channels.labels.view(shape).expand(tensor.shape)
    operator = _operator(call)
    try:
        moved = operator(*[elements if value is tensor else _on_cpu(value) for value in call.arguments.values()])
    except (RuntimeError, TypeError):
        unknown(follower, call)
        return
    for out, labels in zip(tensors_of(call.out), tensors_of(moved), strict=True):
        found = _channels_of(labels)
        if out.numel() == 0:
            follower.fix(tensor, f"what {short(call.name)} takes of them is empty on the example")
        elif found is None or found.labels.unique().tolist() != channels.labels.unique().tolist():
            follower.fix(tensor, f"{short(call.name)} takes them by position")
        follower.give(out, found)


def _on_cpu(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, value)


def _operator(call: Call) -> Callable[..., Any]:
    name = short(call.name)
    if name in ("view", "_unsafe_view"):  # elements that are expanded cannot be viewed
        return lambda elements, size: elements.reshape(size)
    operator: Callable[..., Any] = getattr(torch.ops.aten, name)
    return operator


def _channels_of(elements: Tensor) -> Channels | None:
    """Return the channels of a tensor by the labels of its elements; None if they do not lie along one dimension."""
    dims = []
    for dim, size in enumerate(elements.shape):
        if size == 0:
            return None
        if size > 1 and elements.stride(dim) and bool((elements != elements.narrow(dim, 0, 1)).any()):
            dims.append(dim)
    if len(dims) != 1:
        return None
    at = [slice(None) if dim == dims[0] else 0 for dim in range(elements.dim())]
    return Channels(dims[0], elements[tuple(at)].clone())
