"""Where weights come from: a state-dict file, torchvision's published weights by name, or a seed."""

import logging
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from norton_det.errors import DataError, UsageError, shown
from norton_det.models.architecture import Architecture
from norton_det.models.other_names import in_our_names
from norton_det.models.state_dicts import check_tensors, read_state_dict
from norton_det.models.tasks import Detection

_EPSILON = 1e-5  # of torch's norms, unless something else is said
_TRAINED_WITHOUT_EPSILON = (
    FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
    RetinaNet_ResNet50_FPN_Weights.COCO_V1,
)
logger = logging.getLogger(__name__)


def initial_network(
    architecture: Architecture,
    weights: str | Path | WeightsEnum | None = None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[nn.Module, str]:
    """Return the dense network of an architecture with its weights, and where these came from.

    Args:
        architecture: of the network.
        weights: a state-dict file; one of torchvision's weights, or its name ("IMAGENET1K_V2"); None: seeded random.
        num_classes: None takes it from the weights, or else the architecture's default.
        seed: of the random initialisation.
        progress: show the progress of a download.

    Raises:
        UsageError: unknown weights.
        DataError: the file is missing, is no state dict, or does not fit.
    """
    state: Mapping[str, Tensor] = {}
    source = f"random, seed {seed}"
    if weights is not None:
        state, source = initial_state(architecture, weights, progress=progress)
    if num_classes is None and f"{architecture.classifier}.weight" in state:
        num_classes = len(state[f"{architecture.classifier}.weight"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = architecture.build(num_classes)
    if weights is not None:
        load_state(net, state, source)
    return net, source


def initial_state(
    architecture: Architecture, weights: str | Path | WeightsEnum, *, progress: bool = True
) -> tuple[Mapping[str, Tensor], str]:
    """Return the state dict of weights for the dense network of an architecture, and where they come from.

    Raises:
        UsageError: unknown weights.
        DataError: the file is missing, or is no state dict.
    """
    if named := named_weights(architecture.weights, weights):
        return published_state(named, progress=progress), str(named)
    names = {f"{layer.name}.weight" for layer in architecture.plan.layers}
    return in_our_names(read_state_dict(str(weights), names), architecture.name), Path(str(weights)).name


def published_state(weights: WeightsEnum, *, progress: bool = True) -> dict[str, Tensor]:
    """Return the state dict of torchvision's weights for norms with the usual epsilon.

    The first version's detectors of COCO_V1 were trained with an epsilon of 0, which torchvision sets after it loaded
    them. Here it is taken out of the variances instead, so that norms of any class compute the same.

    Raises:
        DataError: the weights are not there, and cannot be downloaded.
    """
    try:
        with redirect_stdout(sys.stderr):  # torch says there what it downloads
            state: dict[str, Tensor] = dict(weights.get_state_dict(progress=progress, check_hash=True))
    except (OSError, HTTPException) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        where = f"{weights}: cannot be downloaded from {weights.url} ({error})"
        raise DataError(f"{where}; expected a network connection, or the file as {cached}") from None
    if weights not in _TRAINED_WITHOUT_EPSILON:
        return state
    return {name: tensor - _EPSILON if name.endswith("running_var") else tensor for name, tensor in state.items()}


def named_weights(enum: type[WeightsEnum] | None, weights: str | Path | WeightsEnum | None) -> WeightsEnum | None:
    """Return the member of ``enum`` that ``weights`` is or names, or None where it is something else (a path).

    Raises:
        UsageError: ``weights`` is of another enum.
    """
    if isinstance(weights, WeightsEnum):
        if enum is None or not isinstance(weights, enum):
            raise UsageError(f"weights {weights} are not for this architecture; expected {enum and enum.__name__}")
        return weights
    if enum is not None and isinstance(weights, str):
        return enum.__members__.get(weights.removeprefix(f"{enum.__name__}."))
    return None


def names_of(architecture: Architecture, weights: object) -> dict[str, Any]:
    """Return the names of a detector's classes and keypoints, as fields of a spec, if torchvision published them.

    Args:
        architecture: of the network.
        weights: where its weights come from; only torchvision's weights of a detector have names.
    """
    named = isinstance(weights, (str, WeightsEnum)) and named_weights(architecture.weights, weights)
    if not named or architecture.task.name != Detection.name:
        return {}
    return {"classes": tuple(named.meta["categories"]), "keypoints": tuple(named.meta.get("keypoint_names", ()))}


def load_state(
    net: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, keep_precision: bool = False
) -> None:
    """Load ``state`` into ``net``, all or nothing. On "meta" only names and shapes are compared.

    Batch norms may lack ``num_batches_tracked``, as frozen ones do.

    Args:
        net: the network.
        state: its tensors by name.
        source: where they come from, for the messages.
        keep_precision: each tensor of the network becomes of the floating-point type that it has in ``state``. If not,
            they are converted to the network's, and the log says so.

    Raises:
        DataError: names, shapes or types differ, and the message gives the first of each; or a tensor has values that
            are not finite, or negative variances.
    """
    counters = _check_fit(net, state, source)
    state = {name: tensor for name, tensor in state.items() if name not in counters}
    if any(tensor.is_meta for tensor in net.state_dict().values()):
        return
    check_values(net, state, source)
    if keep_precision:
        _adopt_precision(net, state)
    _log_converted(net, state, source)
    net.load_state_dict(state, strict=False)


def _check_fit(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> set[str]:
    """Check names, shapes and types of tensors; return the counters of norms that one side lacks."""
    expected = net.state_dict()
    check_tensors(state, source)
    counters = {name for name in expected.keys() ^ state.keys() if name.endswith(".num_batches_tracked")}
    problems = []
    if missing := [name for name in expected if name not in state and name not in counters]:
        problems.append(f"lacks {len(missing)} tensors ({missing[0]}, ...)")
    if unexpected := [name for name in state if name not in expected and name not in counters]:
        problems.append(f"has {len(unexpected)} unexpected tensors ({shown(unexpected[0])[1:-1]}, ...)")
    both = [name for name in expected if name in state]
    for name in [name for name in both if expected[name].shape != state[name].shape][:1]:
        problems.append(f"{name} has shape {tuple(state[name].shape)}; expected {tuple(expected[name].shape)}")
    for name in [name for name in both if not _of_its_kind(state[name], expected[name])][:1]:
        kind = "floating-point numbers" if expected[name].is_floating_point() else "whole numbers"
        problems.append(f"{name} is {state[name].dtype}; expected {kind}")
    if problems:
        raise DataError(f"{source}: does not fit the network: {'; '.join(problems)}")
    return counters


def _of_its_kind(tensor: Tensor, expected: Tensor) -> bool:
    if expected.is_floating_point():
        return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def check_values(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check the values of tensors that fit a network: they are there, finite, and no variance is negative.

    Args:
        net: the network; the eps of its norms may be taken out of variances.
        state: its tensors by name.
        source: where they come from, for the messages.

    Raises:
        DataError: they are not; the message names the tensor.
    """
    for name, tensor in state.items():
        if tensor.is_meta:
            raise DataError(f"{source}: {name} has a shape and no values")
        if not tensor.isfinite().all():
            raise DataError(f"{source}: {name} has {int((~tensor.isfinite()).sum())} values that are not finite")
        if name.rpartition(".")[2] == "running_var":
            norm = net.get_submodule(name.rpartition(".")[0])
            least = -float(getattr(norm, "eps", 0.0))
            if count := int((tensor.double() < least).sum()):
                raise DataError(f"{source}: {name} has {count} negative values; expected variances")


def _adopt_precision(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in net.state_dict(keep_vars=True).items():
        if name in state and tensor.is_floating_point() and state[name].is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def _log_converted(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    own = net.state_dict()
    types = Counter((tensor.dtype, own[name].dtype) for name, tensor in state.items())
    for (given, taken), count in types.items():
        if given != taken:
            logger.info("%s: %d tensors are converted from %s to %s", source, count, given, taken)
