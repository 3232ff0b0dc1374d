"""Multiply-accumulates and parameters, per layer and in all, counted by fvcore."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.channels.narrow import NORMS
from norton_det.cost.activation_memory import peak_of_layers
from norton_det.decompositions import Decomposition, set_implementation
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Task, task_of
from norton_det.spec import Spec
from norton_det.structure.build import build_network

PUBLISHED_PER_NORM_OUTPUT = 3


@dataclass(frozen=True)
class LayerComplexity:
    """What one convolution, decomposed convolution or linear layer costs."""

    name: str
    kind: str
    """Name of the layer's class."""
    macs: int
    params: int
    macs_per_detection: int = 0
    """Of a mask or keypoint head, for each detected object."""


@dataclass(frozen=True)
class Complexity:
    """What a network costs for one image.

    Attributes:
        layers: convolutions (decomposed ones as one) and linear layers, in the network's order; and any other module
            that convolves or multiplies by itself. Their MACs add up to ``macs``, and those for each detected object to
            ``macs_per_detection``.
        macs: multiply-accumulates of convolutions and linear layers, one fused multiply-add counted as one.
        macs_published: NORTON's column: the same plus 3 per output element of a batch norm; for Keypoint R-CNN, also
            the keypoint head for one detected object.
        params: all parameters, batch norms and the biases of decomposed layers included (frozen batch norms have none).
        image_size: height and width of the image.
        macs_per_detection: of the mask and keypoint heads for each detected object, not in ``macs``, since the number
            of objects depends on the weights. 0 without such heads.
        cp_biases: how many of the parameters are biases of decomposed layers, which the publication does not count.
        activation_memory: bytes in single precision that the layer with the largest tensors needs at once: what it
            reads, and what it writes; of a decomposed layer also what its factors hand on, two of these at a time. What
            the network keeps meanwhile for later layers (shortcuts, other levels of a pyramid) is not in it, nor are
            weights and the heads of each detected object.
    """

    layers: tuple[LayerComplexity, ...]
    macs: int
    macs_published: int
    params: int
    image_size: tuple[int, int]
    macs_per_detection: int = 0
    cp_biases: int = 0
    activation_memory: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def count_complexity(model: nn.Module | Spec, image_size: int | tuple[int, int] | None = None) -> Complexity:
    """Count what a network costs for one image.

    Torchvision's R-CNNs are counted at 800x800 with exactly 1000 proposals, so that the count does not depend on the
    weights. The network stays as it is: a copy of it runs once on the CPU, in single precision.

    A decomposed layer is counted as its factors, one convolution after another, also where it is trained in another
    implementation (``norton_det.decompositions.set_implementation``): the count is that of its spec. A deployed network
    is counted as it runs.

    Args:
        model: a network, or the spec of one.
        image_size: height and width; None takes the architecture's, or 800 for detectors.

    Raises:
        UsageError: no image size is given for a network that is no detector.

    Example:
        >>> import norton_det as nd
        >>> dense = nd.count_complexity(nd.Spec("resnet56_cifar", 10))
        >>> dense.params, dense.macs
        (853018, 125485696)
    """
    if isinstance(model, Spec):
        architecture = ARCHITECTURES[model.arch]
        net = build_network(model, architecture).module
        return _complexity(net, architecture.task, image_size or architecture.image_size)
    task = task_of(model)
    return _complexity(copy.deepcopy(model).cpu(), task, image_size or task.image_size)


def _complexity(net: nn.Module, task: Task, image_size: int | tuple[int, int] | None) -> Complexity:
    if image_size is None:
        raise UsageError("image_size is None; expected the height and width of an image for a classifier")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    net = net.float()
    set_implementation(net, "factored")
    image = torch.zeros(1, 3, height, width, dtype=torch.float32)
    with peak_of_layers(net) as memory:
        macs, norm_outputs = _count(task.counted(net), image)
    per_detection = task.counted_per_detection(net)
    head_macs = _count(per_detection, image)[0] if per_detection else {"": 0}
    blocks = [module for module in net.modules() if isinstance(module, Decomposition)]
    biases = [bias for block in blocks if (bias := getattr(block, "bias", None)) is not None]
    published_head = head_macs[""] if task.published_counts_heads() else 0
    return Complexity(
        tuple(_layers(net, macs, head_macs)),
        macs[""],
        macs[""] + PUBLISHED_PER_NORM_OUTPUT * norm_outputs + published_head,
        sum(p.numel() for p in net.parameters()),
        (height, width),
        head_macs[""],
        sum(bias.numel() for bias in biases),
        max(memory.values(), default=0),
    )


def _count(net: nn.Module, image: Tensor) -> tuple[dict[str, int], int]:
    """Return the multiply-accumulates by module ("" is the whole), and the number of batch-norm output elements."""
    with warnings.catch_warnings():
        # fvcore compiles its box losses with torch.jit on import; the kind of torch's warning depends on its release.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import addmm_flop_jit, conv_flop_count, conv_flop_jit, get_shape, linear_flop_jit

    def count_named_padding(inputs: Any, outputs: Any) -> int:  # "same" or "valid"; never transposed
        count: int = conv_flop_count(*(get_shape(value) for value in (*inputs[:2], outputs[0])))
        return count

    outputs: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: outputs.append(math.prod(map(int, output.shape))))
        for module in net.modules()
        if isinstance(module, NORMS)
    ]
    analysis = FlopCountAnalysis(net.eval(), image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    # fvcore's own set also counts normalisation, interpolation and pooling.
    handles = {"_convolution": conv_flop_jit, "_convolution_mode": count_named_padding}
    handles |= {"addmm": addmm_flop_jit, "linear": linear_flop_jit}
    analysis.clear_op_handles().set_op_handle(**{f"aten::{name}": handle for name, handle in handles.items()})
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, about shapes becoming constants: that is intended
            macs = {name: int(count) for name, count in analysis.by_module().items()}
    finally:
        for hook in hooks:
            hook.remove()
    return macs, sum(outputs)


def _layers(net: nn.Module, macs: Mapping[str, int], per_detection: Mapping[str, int]) -> Iterator[LayerComplexity]:
    """Yield the layers, and the modules around them that do something themselves; counts are by module, with all in it.

    Args:
        net: the network.
        macs: as it is counted.
        per_detection: for each detected object.
    """
    inside = "."
    for name, module in net.named_modules():
        if name.startswith(inside):
            continue
        whole = isinstance(module, (Decomposition, nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        if whole:
            inside = f"{name}."
        parts = [] if whole else [f"{name}.{part}".lstrip(".") for part, _ in module.named_children()]
        own = [counts.get(name, 0) - sum(counts.get(part, 0) for part in parts) for counts in (macs, per_detection)]
        if whole or any(own):
            params = sum(p.numel() for p in module.parameters(recurse=whole))
            yield LayerComplexity(name, type(module).__name__, own[0], params, own[1])
