"""What each operator of a network does with channels. One that is not listed fixes the channels that it is given."""

import re
from typing import Any

import torch

from norton_det.channels.following import computing, moving
from norton_det.channels.following.follower import Rule, short


def rule_of(operator: Any) -> Rule:
    """Return what an operator (an ``OpOverload``) does with channels."""
    name = short(operator._schema.name)
    for pattern, rule in _RULES:
        if re.fullmatch(pattern, name):
            return rule
    if torch.Tag.pointwise in operator.tags:
        return _POINTWISE
    return _REARRANGE if operator.is_view else Rule(computing.unknown)


_POINTWISE = Rule(computing.pointwise)
_REARRANGE = Rule(moving.rearrange)
_RULES: list[tuple[str, Rule]] = [
    (r"convolution", Rule(computing.layer_map("input", "weight"), takes_weights=True)),
    (r"addmm", Rule(computing.layer_map("mat1", "mat2"), takes_weights=True)),
    (r"mm", Rule(computing.layer_map("self", "mat2"), takes_weights=True)),
    (r"\w*batch_norm\w*|native_group_norm", Rule(computing.norm)),
    (r"native_layer_norm", Rule(computing.layer_norm)),
    (
        r"\w*(pool|upsample_|reflection_pad|replication_pad|grid_sampler_)\w*\dd\w*|roi_align|roi_pool",
        Rule(computing.per_channel),
    ),
    (r"_embedding_bag\w*|embedding", Rule(computing.rows)),
    (
        r"mean|sum|amax|amin|max|min|prod|var|std|var_mean|logsumexp|linalg_vector_norm|norm|any|all",
        Rule(computing.reduce),
    ),
    (r"_softmax|_log_softmax|cumsum", Rule(computing.along)),
    (r"cat|stack", Rule(moving.concatenate)),
    (r"constant_pad_nd", Rule(moving.pad)),
    (r"index_put|_index_put_impl", Rule(moving.put)),
    (r"copy", Rule(moving.copy)),
    (r"_to_copy|hardswish|_prelu_kernel|masked_fill|where|fill|zero|(zeros|ones|full|empty)_like", _POINTWISE),
    (r"index|index_select|repeat|flip|roll|_unsafe_view", _REARRANGE),
    (r"_assert\w*|new_(zeros|ones|full|empty)\w*", Rule(computing.nothing)),
]
