"""A detector by file or name, which knows what its classes are called."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from norton_det.builders.load_detector import read_detector, set_image_size
from norton_det.errors import DataError, UsageError
from norton_det.export.formats import FORMATS
from norton_det.export.onnx_network import OnnxNetwork, load_onnx
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.models.weights import named_weights
from norton_det.runtime.device import check_device, default_device
from norton_det.runtime.run_folder import BEST
from norton_det.spec import Spec
from norton_det.storage import is_file, is_folder, is_there


def load_detector(
    name: str | Path,
    device: torch.device | str | None = None,
    *,
    weights: str | None = "DEFAULT",
    min_size: int | None = None,
    max_size: int | None = None,
) -> nn.Module:
    """Return a detector that is ready for :func:`norton_det.predict`, from a file or by the name of a builder.

    Its attributes ``class_names`` (by label, the background first) and ``keypoint_names`` are tuples of text; they are
    empty where the names are not known.

    Args:
        name: a file of ``norton_det.save``, deployed or not, or a training checkpoint; or the folder of a training, of
            which ``best.safetensors`` is taken; or an ONNX file of ``norton-det export``, which runs on the CPU; or the
            name of the builder of a detector, torchvision's (``fasterrcnn_resnet50_fpn``) or ours, even where a folder
            has this name.
        device: where the detector is put. None: a GPU if there is one, else the CPU.
        weights: with the name of a builder: which of torchvision's weights, downloaded at the first time; None: random
            ones.
        min_size: length in pixels to which an image's shorter side is scaled; None: as trained.
        max_size: limit of the longer side; None: as trained.

    Returns:
        The detector in evaluation mode.

    Raises:
        DataError: the file is missing or damaged, the folder lacks it, or the weights cannot be downloaded.
        UsageError: the file holds no detector, or there is no such device or no such weights.

    Example:
        >>> import norton_det as nd
        >>> net, spec = nd.compress(None, arch="fasterrcnn_cpresnet50_fpn", rates="[0.75]*20", num_classes=3)
        >>> nd.save(net, spec, "detector.safetensors")
        >>> detector = nd.load_detector("detector.safetensors", "cpu")
        >>> detector.training, detector.class_names
        (False, ())
        >>> nd.load_detector("detector.pth")
        Traceback (most recent call last):
        norton_det.errors.DataError: detector.pth: no such file; expected a file of a detector, or one of: fasterrcnn...
    """
    device = default_device() if device is None else device
    check_device(device)
    known = [*list_models(module=detection), *filter(_is_ours, list_models())]
    net: Any
    file = Path(name)
    if _is_onnx(file):
        return _read_onnx(file, min_size, max_size)
    if str(name) in known and not is_file(file):
        net, classes, keypoints = _built(str(name), weights)
    elif is_there(file):
        net, spec = read_detector(_best_of(file) if is_folder(file) else name, device)
        classes, keypoints = spec.classes, spec.keypoints
    else:
        raise DataError(f"{name}: no such file; expected a file of a detector, or one of: {', '.join(known)}")
    set_image_size(net, min_size, max_size)
    net.class_names, net.keypoint_names = classes, keypoints
    detector: nn.Module = net.to(device).eval()
    return detector


def open_detector(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    min_size: int | None = None,
    max_size: int | None = None,
) -> tuple[nn.Module, Spec]:
    """Return the detector in a file and its spec, as ``read_detector`` does, also of an ONNX file, run on the CPU.

    Raises:
        DataError: the file is missing or damaged.
        UsageError: it holds no detector or no spec, or there is no such device, or the image size of an ONNX file is to
            be changed.
    """
    if not _is_onnx(path):
        return read_detector(path, device, min_size=min_size, max_size=max_size)
    net = _read_onnx(path, min_size, max_size)
    if net.spec is None:
        raise UsageError(f"{path}: was exported without a spec; expected a file of norton-det export with one")
    return net, net.spec


def _is_onnx(path: str | Path) -> bool:
    return Path(path).suffix == FORMATS["onnx"].suffix


def _read_onnx(path: str | Path, min_size: int | None, max_size: int | None) -> OnnxNetwork:
    net = load_onnx(path)
    if not net.contract.is_detector:
        raise UsageError(f"{path}: returns {net.contract.kind}; expected a detector")
    if min_size is not None or max_size is not None:
        raise UsageError(f"{path}: scales images to the size with which it was exported; expected no other size")
    return net


def _best_of(folder: Path) -> Path:
    if not (folder / BEST).is_file():
        raise DataError(f"{folder}: is a folder; expected a file in it, such as {BEST}")
    return folder / BEST


def _is_ours(name: str) -> bool:
    return name in ARCHITECTURES and ARCHITECTURES[name].task.name == Detection.name


def _built(name: str, weights: str | None) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Return a detector of a builder with torchvision's weights, and the names of its classes and keypoints."""
    if weights is None:
        return get_model(name, weights=None, weights_backbone=None), (), ()
    enum = get_model_weights(name)
    named = named_weights(enum, weights)
    if named is None:
        raise UsageError(f"weights {weights!r} of {name}: unknown; expected one of: {', '.join(enum.__members__)}")
    try:
        net = get_model(name, weights=named)
    except (OSError, HTTPException) as error:
        raise DataError(f"{named}: cannot be downloaded: {error}") from None
    return net, tuple(named.meta["categories"]), tuple(named.meta.get("keypoint_names", ()))
