"""``norton_det.export_network``: a network as a file for other runtimes."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_det.errors import UsageError, expect_choice
from norton_det.export.check import Check, compare, image_without_detection, silenced, silent_problem
from norton_det.export.contract import AXES, Contract
from norton_det.export.formats import FORMATS, Format
from norton_det.export.images import generated_images
from norton_det.export.implementations import AUTO, Runner
from norton_det.export.prepare import as_evaluated, exportable
from norton_det.export.preprocessing import example_size, preprocessing_of
from norton_det.files import write_atomically
from norton_det.models.detector_calls import kind_of, outputs_by_name, transform_of
from norton_det.spec import Spec

logger = logging.getLogger(__name__)
_FEW = 10


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file.
        format: its name.
        contract: what it takes and returns.
        check: what was compared.
    """

    path: Path
    format: str
    contract: Contract
    check: Check


def export_network(
    net: nn.Module,
    path: str | Path,
    *,
    format: str = "onnx",  # as torch and others name it
    spec: Spec | None = None,
    class_names: Sequence[str] | None = None,
    keypoint_names: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
    dynamic: bool = True,
    fold: bool = True,
    implementation: str = AUTO,
    runner: Runner | None = None,
    check_images: Sequence[Tensor] | None = None,
    check_threshold: float = 0.3,
) -> Exported:
    """Write a network as a file for other runtimes, and check the file.

    What the file returns is compared with what ``net`` returns: on each image, on the first one at other sizes, on a
    batch, and for a detector on an image without any detection. The file has its name only when all of that is equal.

    Args:
        net: a classifier, a backbone, a detector of torchvision or of this package, or any network with such inputs and
            outputs; it stays as it is. A deployed one is exported with layers that graphs can hold.
        path: the file; its folder must exist.
        format: "onnx"; "torch.export", for networks that are no detectors; or "torchscript".
        spec: of the network, for the metadata: what ``norton_det.load`` or ``norton_det.compress`` returned with it.
        class_names: by label, the background of a detector first. None: those of ``spec``, or ``net.class_names``.
        keypoint_names: None: likewise.
        image_size: height and width of the example. None: those of the architecture, or of ``check_images``.
        dynamic: height, width and batch size may differ from the example, where the network and the format allow it. A
            detector in ONNX takes one image at a time.
        fold: fold batch norms into the layers before them.
        implementation: in which decomposed layers are computed: "factored", "depthwise", "merged", "dense", where a
            layer has it; or "auto", for each the one that is fastest in the runtime, measured on the example.
        runner: what measures it, a function of a layer and its arguments that returns what is timed. None: the runtime
            of the format, in float32.
        check_images: (3, H, W), as the network takes them: 0 to 1 for detectors, else normalised. None: generated ones.
        check_threshold: detections with a score above it are compared.

    Returns:
        What the file takes and returns, and the differences that were measured.

    Raises:
        UsageError: a wrong argument; the network cannot be exported, or the file returns something else: the message
            says what. No file is written then.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> import norton_det as nd
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = nd.export_network(net, f"{folder}/net.onnx", image_size=(32, 32))
        >>> done.contract.outputs, done.contract.dynamic, done.contract.changes
        (('logits',), ('batch', 'height', 'width'), ('1 batch norms are folded',))
        >>> done.check.differences.figures()["outputs"] < 1e-4
        True
    """
    expect_choice("format", format, FORMATS)
    kind = FORMATS[format]
    if Path(path).suffix != kind.suffix:
        raise UsageError(f"{path}: expected a name that ends with {kind.suffix}, for the format {format}")
    spec = spec if spec is not None else getattr(net, "spec", None)
    given, types = as_evaluated(net)
    preprocessing = preprocessing_of(given, spec)
    images = _images(given, spec, preprocessing, image_size, check_images)
    size = image_size or _size_of(images[0])
    images = images if dynamic else [resized(image, size) for image in images]
    contract = replace(
        _contract(given, resized(images[0], size), kind, dynamic=dynamic),
        class_names=_names(net, spec, "class_names", class_names),
        keypoint_names=_names(net, spec, "keypoint_names", keypoint_names),
        preprocessing=preprocessing,
        spec=spec,
    )
    example = _example(resized(images[0], size), contract)
    arguments = ([*example] if contract.is_detector else example,)
    runner = runner or kind.runner
    prepared, changes = exportable(given, arguments, fold=fold, implementation=implementation, runner=runner)
    job = _Job(kind, given, prepared, replace(contract, changes=types + changes), example)
    checks: list[Check] = []
    write_atomically(path, lambda name: checks.append(job.write(name, images, check_threshold)))
    return Exported(Path(path), format, job.contract, checks[0])


@dataclass(frozen=True)
class _Job:
    """What is written, and what it is compared with.

    Attributes:
        kind: the format.
        given: the network that was given.
        prepared: an equal one, which can be exported.
        contract: how it is called.
        example: images (N, 3, H, W).
    """

    kind: Format
    given: nn.Module
    prepared: nn.Module
    contract: Contract
    example: Tensor

    def write(self, path: str, images: Sequence[Tensor], threshold: float) -> Check:
        """Write and check a file.

        Raises:
            UsageError: it cannot be written, or does not return what the network returns.
        """
        self.kind.write(self.prepared, self.contract, self.example, path)
        run = self.kind.read(path)
        check = compare(run, self.given, images, self.contract, threshold)
        problem = check.differences.problem()
        if self.contract.is_detector and problem is None:
            size = (images[0].shape[1], images[0].shape[2])
            uniform = image_without_detection(self.given, size)
            problem = silent_problem(run, uniform[0]) if uniform else self._silent_problem(images[0])
            check = replace(check, without_detection=uniform[1] if uniform else "score threshold 1")
        if problem:
            raise UsageError(f"the {self.kind.title} file does not return what model returns: {problem}")
        if self.contract.is_detector and check.differences.detections < _FEW:
            count = check.differences.detections
            logger.warning("only %d detections above %g were compared; give images with objects", count, threshold)
        return check

    def _silent_problem(self, image: Tensor) -> str | None:
        """Return what is wrong with a second file, of the same network with a threshold that no score reaches."""
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/silent{self.kind.suffix}"
            self.kind.write(silenced(self.prepared), self.contract, self.example, file)
            return silent_problem(self.kind.read(file), image)


def _images(
    net: nn.Module,
    spec: Spec | None,
    preprocessing: dict[str, Any],
    size: tuple[int, int] | None,
    given: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Return the images of the check."""
    if given is None:
        return generated_images(size or example_size(net, spec), preprocessing)
    if not len(given):
        raise UsageError("check_images is empty; expected at least one image (3, H, W)")
    for image in given:
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise UsageError(f"an image of check_images is {shape}; expected a float tensor (3, H, W)")
    return [image.cpu().float() for image in given]


def _contract(net: nn.Module, image: Tensor, kind: Format, *, dynamic: bool) -> Contract:
    """Return how a network is called, without names: it is run on an image (3, H, W), and on one twice as large."""
    takes_list = transform_of(net) is not None
    try:
        with torch.no_grad():
            outputs = net([image] if takes_list else image[None])
    except Exception as error:  # whatever a network's own code raises
        size = tuple(image.shape)
        raise UsageError(f"model does not run on an image {size}: {type(error).__name__}: {error}") from error
    axes = tuple(axis for axis in AXES if axis != "batch" or not takes_list or kind.takes_lists) if dynamic else ()
    if dynamic and not takes_list and not _runs(net, F.interpolate(image[None], scale_factor=2.0)):
        axes = AXES[:1]
    return Contract(kind_of(net, outputs), tuple(outputs_by_name(outputs)), _size_of(image), axes)


def _runs(net: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            net(images)
    except Exception:  # whatever a network's own code raises
        return False
    return True


def _example(image: Tensor, contract: Contract) -> Tensor:
    """Return images (N, 3, H, W): two where the batch is dynamic, since tracers take a 1 for a constant."""
    return torch.stack([image, image.flip(2)]) if "batch" in contract.dynamic else image[None]


def _size_of(image: Tensor) -> tuple[int, int]:
    return image.shape[1], image.shape[2]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image (3, H, W) scaled to a height and a width."""
    if _size_of(image) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _names(net: nn.Module, spec: Spec | None, name: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of classes or keypoints: those that were given, or those of the spec, or of the network."""
    if given is not None:
        return tuple(given)
    of_spec = getattr(spec, _IN_SPEC[name], ())
    return tuple(of_spec or getattr(net, name, ()))


_IN_SPEC = {"class_names": "classes", "keypoint_names": "keypoints"}
