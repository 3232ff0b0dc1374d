"""What the operators of a network do with channels. What is not listed fixes the channels that it is given."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.channels.follow import Call, Channels, Followed, Follower, Rule, short, tensors_of


def rule_of(operator: Any) -> Rule:
    """Return what an operator (an ``OpOverload``) does with channels."""
    name = short(operator._schema.name)
    for pattern, rule in _RULES:
        if re.fullmatch(pattern, name):
            return rule
    if torch.Tag.pointwise in operator.tags:
        return _POINTWISE
    return _REARRANGE if operator.is_view else Rule(_unknown)


def _unknown(follower: Follower, call: Call) -> None:
    follower.fix(call.inputs, f"they are an argument of {short(call.name)}")


def _nothing(follower: Follower, call: Call) -> None:
    """Do nothing: the operator looks at no values and returns no channels."""


def _pointwise(follower: Follower, call: Call) -> None:
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
        follower.labels.unite(labels, channels.labels, _meets(call, "others of no layer"), elementwise=True)
    elif tensor.dim() >= -dim and tensor.shape[dim] > 1:
        follower.labels.fix(labels, _meets(call, follower.describe(tensor)))


def _meets(call: Call, what: str) -> str:
    return f"they meet {what} in {short(call.name)}"


def _norm(follower: Follower, call: Call) -> None:
    """Unite the channels of a map with those of a norm's parameters."""
    tensor, arguments = call.arguments["input"], call.arguments
    channels = follower.of(tensor)
    if channels and (channels.dim != 1 or arguments.get("group", channels) not in (channels, tensor.shape[1])):
        follower.fix(tensor, f"{short(call.name)} normalises several of them together")
    parameters = [arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for parameter in filter(None.__ne__, parameters):
        labels, given = (
            found.labels if (found := follower.of(held)) else torch.zeros(len(parameter), dtype=torch.int64)
            for held in (tensor, parameter)
        )
        follower.labels.unite(labels, given, _meets(call, follower.describe(parameter)))
    follower.give(tensors_of(call.out)[0], channels)


def _layer_norm(follower: Follower, call: Call) -> None:
    tensor = call.arguments["input"]
    channels = follower.of(tensor)
    if channels and channels.dim >= tensor.dim() - len(call.arguments["normalized_shape"]):
        follower.fix(tensor, f"{short(call.name)} normalises several of them together")
    follower.give(call.out[0], channels)


def _map(input_name: str, weight_name: str) -> Callable[[Follower, Call], None]:
    """Return the rule of an operator that maps channels to others by the weight of a layer."""

    def apply(follower: Follower, call: Call) -> None:
        given, weight = call.arguments[input_name], call.arguments[weight_name]
        layer = _layer_of(follower, weight, call)
        if layer is None:
            follower.fix(call.inputs, f"they are an argument of {short(call.name)}, whose weight is of no layer")
            return
        dim = given.dim() - 1 if isinstance(layer.module, nn.Linear) else 1
        groups = call.arguments.get("groups", 1)
        if groups > 1 and groups == given.shape[1] == call.out.shape[1]:
            follower.read(layer, given, 1)
            follower.give(call.out, follower.of(given))
            return
        if groups > 1:
            layer.obstacle = f"{layer.name} is a convolution with groups={groups}"
        if any(follower.owner(tensor) is None for tensor in call.inputs if tensor is not given):
            layer.obstacle = f"the bias of {layer.name} is computed"
        follower.read(layer, given, dim)
        follower.write(layer, call.out, dim)

    return apply


def _layer_of(follower: Follower, weight: Tensor, call: Call) -> Followed | None:
    """Return the layer whose whole weight, or its transpose, an operator takes, and no tensor of another layer."""
    owners = [owner for tensor in call.inputs if (owner := follower.owner(tensor))]
    owner = follower.owner(weight)
    if owner and {layer.name for layer, _ in owners} == {owner[0].name} and isinstance(owner[0].module.weight, Tensor):
        whole = owner[0].module.weight
        expected = whole.t() if isinstance(owner[0].module, nn.Linear) else whole
        if (weight.shape, weight.stride()) == (expected.shape, expected.stride()):
            return owner[0]
    for layer, name in owners:
        layer.obstacle = f"its {name} is an argument of {short(call.name)} outside of the layer"
    return None


def _per_channel(follower: Follower, call: Call) -> None:
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
        _unknown(follower, call)


def _rows(follower: Follower, call: Call) -> None:
    """Keep the channels of the first argument, a table whose rows are combined."""
    table, *others = call.inputs
    follower.fix(others, f"they are an argument of {short(call.name)}")
    channels = follower.of(table)
    if channels and channels.dim == 1:
        out = tensors_of(call.out)[0]
        follower.give(out, Channels(out.dim() - 1, channels.labels))
    else:
        _unknown(follower, call)


def _reduce(follower: Follower, call: Call) -> None:
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


def _along(follower: Follower, call: Call) -> None:
    """Keep the channels if the operator does not work along them."""
    (tensor,) = call.inputs
    channels = follower.of(tensor)
    assert channels is not None
    if channels.dim == call.arguments["dim"] % tensor.dim():
        follower.fix(tensor, f"{short(call.name)} is along them")
    for out in tensors_of(call.out):
        follower.give(out, channels)


def _concatenate(follower: Follower, call: Call) -> None:
    """Concatenate channels, or unite them where they are concatenated along another dimension."""
    tensors = [tensor for tensor in call.inputs if tensor.dim() > 1 or tensor.numel()]  # cat ignores an empty one
    stacked = short(call.name) == "stack"
    held = [(tensor, channels) for tensor in tensors if (channels := follower.of(tensor))]
    dims = {channels.dim for _, channels in held}
    if len(dims) != 1:
        _unknown(follower, call)
        return
    (dim,) = dims
    along = call.arguments.get("dim", 0) % call.out.dim()
    if along == dim and not stacked:
        none = [torch.zeros(tensor.shape[dim], dtype=torch.int64) for tensor in tensors]
        parts = [follower.of(tensor) or Channels(dim, zeros) for tensor, zeros in zip(tensors, none, strict=True)]
        follower.give(call.out, Channels(dim, torch.cat([part.labels for part in parts])))
        return
    first = held[0][1].labels
    for tensor in tensors:
        _read_alike(follower, first, tensor, call)
    follower.give(call.out, Channels(dim + (stacked and along <= dim), first))


def _read_alike(follower: Follower, labels: Tensor, tensor: Tensor, call: Call) -> None:
    """Unite channels that lie side by side in one tensor, and so are read by the same layers."""
    channels = follower.of(tensor)
    given = channels.labels if channels else torch.zeros_like(labels)
    follower.labels.unite(labels, given, _meets(call, follower.describe(tensor)))


def _pad(follower: Follower, call: Call) -> None:
    tensor = call.arguments["self"]
    channels, pad = follower.of(tensor), list(call.arguments["pad"])
    assert channels is not None
    from_last = 2 * (tensor.dim() - 1 - channels.dim)
    before, after = (*pad[from_last : from_last + 2], 0, 0)[:2]
    labels = torch.nn.functional.pad(channels.labels, (before, after))
    follower.give(call.out, Channels(channels.dim, labels))


def _put(follower: Follower, call: Call) -> None:
    """Write rows of channels into a tensor of constants, or into one that holds channels."""
    target, values = call.arguments["self"], call.arguments["values"]
    indices = call.arguments["indices"]
    source, present = follower.of(values), follower.of(target)
    follower.fix(tensors_of(indices), f"they are an index in {short(call.name)}")
    if not source:
        follower.fix(target, _meets(call, follower.describe(values))) if values.numel() > 1 else None
        return
    dim = source.dim - values.dim() + target.dim()
    at_channels = dim < len(indices) and any(index is not None for index in indices[dim:])
    covers = target.numel() * target.element_size() == target.untyped_storage().nbytes()
    if at_channels or not covers or dim < 0 or target.shape[dim] != len(source.labels):
        follower.fix([target, values], "they are written into a part of a tensor")
    elif present:
        _read_alike(follower, source.labels, target, call)
    else:
        follower.give(call.out, Channels(dim, source.labels))


def _copy(follower: Follower, call: Call) -> None:
    target, source = call.arguments["self"], call.arguments["src"]
    covers = target.numel() * target.element_size() == target.untyped_storage().nbytes()
    if follower.of(source) and not (covers and target.shape == source.shape):
        follower.fix([target, source], "they are written into a part of a tensor")
    elif follower.of(source) and not follower.of(target):
        follower.give(target, follower.of(source))
    else:
        _pointwise(follower, call)


def _rearrange(follower: Follower, call: Call) -> None:
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
        moved = operator(*[elements if value is tensor else value for value in call.arguments.values()])
    except (RuntimeError, TypeError):
        _unknown(follower, call)
        return
    for out, labels in zip(tensors_of(call.out), tensors_of(moved), strict=True):
        found = _channels_of(labels)
        if out.numel() == 0:
            follower.fix(tensor, f"what {short(call.name)} takes of them is empty on the example")
        elif found is None or found.labels.unique().tolist() != channels.labels.unique().tolist():
            follower.fix(tensor, f"{short(call.name)} takes them by position")
        follower.give(out, found)


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


_POINTWISE = Rule(_pointwise)
_REARRANGE = Rule(_rearrange)
_RULES: list[tuple[str, Rule]] = [
    (r"convolution", Rule(_map("input", "weight"), takes_weights=True)),
    (r"addmm", Rule(_map("mat1", "mat2"), takes_weights=True)),
    (r"mm", Rule(_map("self", "mat2"), takes_weights=True)),
    (r"\w*batch_norm\w*|native_group_norm", Rule(_norm)),
    (r"native_layer_norm", Rule(_layer_norm)),
    (r"\w*(pool|upsample_|reflection_pad|replication_pad|grid_sampler_)\w*\dd\w*|roi_align|roi_pool", Rule(_per_channel)),
    (r"_embedding_bag\w*|embedding", Rule(_rows)),
    (r"mean|sum|amax|amin|max|min|prod|var|std|var_mean|logsumexp|linalg_vector_norm|norm|any|all", Rule(_reduce)),
    (r"_softmax|_log_softmax|cumsum", Rule(_along)),
    (r"cat|stack", Rule(_concatenate)),
    (r"constant_pad_nd", Rule(_pad)),
    (r"index_put|_index_put_impl", Rule(_put)),
    (r"copy", Rule(_copy)),
    (r"_to_copy|hardswish|_prelu_kernel|masked_fill|where|fill|zero|(zeros|ones|full|empty)_like", _POINTWISE),
    (r"index|index_select|repeat|flip|roll|_unsafe_view", _REARRANGE),
    (r"_assert\w*|new_(zeros|ones|full|empty)\w*", Rule(_nothing)),
]
