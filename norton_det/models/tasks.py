"""What a task asks of a network: example inputs, the features that are compared, and what is run to be counted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from norton_det.models.rcnn_counted import HeadsOfOneDetection, RCNNAtFixedProposals
from norton_det.models.rcnn_outputs import (
    batch_of,
    head_outputs,
    is_standard,
    outputs_before_choice,
    pyramid_of,
    pyramid_of_batch,
    rpn_outputs,
)
from norton_det.models.rcnn_regions import Regions, regions_of

Images = Tensor | Sequence[Tensor]
"""Inputs of a network: (N, 3, H, W), normalised, for classifiers; a list of (3, H, W), 0 to 1, for detectors."""

Part = Callable[[Any, Any], Any]
"""A part of a network's computation: (network, what its first part returned) -> outputs."""


def as_inputs(images: Images, net: nn.Module) -> Images:
    """Return images on the device and of the dtype of a network's parameters, as it can take them.

    Example:
        >>> net = nn.Conv2d(3, 8, 3, dtype=torch.bfloat16)
        >>> net(as_inputs(torch.rand(1, 3, 8, 8), net)).dtype
        torch.bfloat16
    """
    like = next((parameter for parameter in net.parameters() if parameter.is_floating_point()), None)
    if like is None:  # it takes what it is given
        return images
    kind = (like.device, getattr(net, "input_dtype", like.dtype))  # one that is deployed in lower precision says it
    return images.to(*kind) if isinstance(images, Tensor) else [image.to(*kind) for image in images]


_HEAD_OF = {"segm": "mask", "keypoints": "keypoint"}  # by what it predicts, in COCO's words


class Task(ABC):
    """A task, as far as compression differs between tasks.

    Attributes:
        name: "classification" or "detection".
        image_size: side of the square image at which complexity is stated for any network of the task; None: it depends
            on the architecture.
        compared_size: side of the images on which two networks are compared; None: ``image_size`` of the architecture.
        features: name of the submodule whose outputs are the features; "" is the whole network.
        calibration_images: how many images commands calibrate on, if not told.
        kinds: what a detector predicts, in COCO's words: "bbox", and "segm" or "keypoints".
    """

    name: ClassVar[str]
    image_size: ClassVar[int | None] = None
    compared_size: ClassVar[int | None] = None
    features: ClassVar[str] = ""
    calibration_images: ClassVar[int] = 1024
    kinds: tuple[str, ...] = ()

    @abstractmethod
    def example(self, size: int, batch: int = 1, channels: int = 3) -> Any:
        """Return ``batch`` random square images of side ``size``, as the network takes them."""

    @abstractmethod
    def features_of(self, net: nn.Module, images: Images) -> list[Tensor]:
        """Run ``net`` on images and return its features: what a student imitates and what is differentiated."""

    def feature_groups(self, net: nn.Module) -> tuple[str, ...]:
        """Return the channel group of each feature; none where their channels are all of one layer, or never pruned."""
        return ()

    def runs_in_parts(self, net: nn.Module) -> bool:
        """Tell whether all of the network can be run as :meth:`parts`, not only what computes the features."""
        return True

    def regions_of(self, net: nn.Module, images: Images, *, seed: int = 0) -> Regions | None:
        """Return for which boxes of the images the parts behind the features are run; None where there is no such part.

        Args:
            net: the network that chooses them; others are compared with it on the same boxes.
            images: as the network takes them.
            seed: of what is drawn.
        """
        return None

    @abstractmethod
    def parts(self, images: Images, regions: Regions | None = None) -> list[Part]:
        """Return what the network computes, part by part.

        The first part runs on the images, the others on what the first one returns. Each computes every one of its
        layers, whatever the values; nothing is chosen.

        Args:
            images: without labels, as the network takes them.
            regions: boxes of the images; None: the features alone.
        """

    @abstractmethod
    def outputs_of(self, net: nn.Module, images: Images, regions: Regions | None = None) -> dict[str, list[Tensor]]:
        """Return by name the outputs that count, differentiable: the features, and those of all parts behind them.

        Args:
            net: the network.
            images: as the network takes them.
            regions: boxes of the images, from :meth:`regions_of` of a network that may be another one; None: the
                features alone.
        """

    def compared(self, net: nn.Module, *arguments: Any, size: int | None = None) -> Any:
        """Return outputs that tell whether two networks compute the same: small errors in the network stay small.

        Args:
            net: in evaluation mode.
            arguments: of the network.
            size: side in pixels to which a detector's images are scaled; None: as the detector scales them.
        """
        return net(*arguments)

    def counted(self, net: nn.Module) -> nn.Module:
        """Return the module that is run on an image (1, 3, H, W) to count the network."""
        return net

    def counted_per_detection(self, net: nn.Module) -> nn.Module | None:
        """Return the module whose cost arises once for each detected object; None if there is none."""
        return None

    def published_counts_heads(self) -> bool:
        """Tell whether the published MACs include ``counted_per_detection`` for one object."""
        return False


class Classification(Task):
    """Images (N, 3, H, W) to logits (N, C); the features are the logits."""

    name = "classification"

    def example(self, size: int, batch: int = 1, channels: int = 3) -> Tensor:
        """Return images (batch, channels, size, size)."""
        return torch.rand(batch, channels, size, size)

    def features_of(self, net: nn.Module, images: Images) -> list[Tensor]:
        """Return the logits, as the only feature."""
        return [net(images if isinstance(images, Tensor) else torch.stack(list(images)))]

    def parts(self, images: Images, regions: Regions | None = None) -> list[Part]:
        """Return one part, which is all of the network."""
        return [lambda net, _: net(as_inputs(images, net))]

    def outputs_of(self, net: nn.Module, images: Images, regions: Regions | None = None) -> dict[str, list[Tensor]]:
        """Return the logits as "features"."""
        return {"features": self.features_of(net, images)}


class FeatureExtraction(Classification):
    """Images (N, 3, H, W) to feature maps by name, as of a backbone; all of them are the features."""

    name = "features"
    compared_size: ClassVar[int] = 64
    calibration_images = 64

    def features_of(self, net: nn.Module, images: Images) -> list[Tensor]:
        """Return the feature maps in order."""
        return list(super().features_of(net, images)[0].values())

    def feature_groups(self, net: Any) -> tuple[str, ...]:
        """Return the group of each map, which the network knows."""
        return tuple(net.groups)


class Detection(Task):
    """A list of images (3, H, W) to predictions, by one of torchvision's R-CNNs; the features are the pyramid's levels.

    Args:
        kinds: what is predicted, in COCO's words: "bbox", and "segm" or "keypoints".
    """

    name = "detection"
    image_size: ClassVar[int] = 800
    compared_size: ClassVar[int] = 64
    features = "backbone"
    calibration_images = 64

    def __init__(self, kinds: tuple[str, ...] = ("bbox",)) -> None:
        self.kinds = kinds

    def example(self, size: int, batch: int = 1, channels: int = 3) -> list[Tensor]:
        """Return ``batch`` images (channels, size, size)."""
        return list(torch.rand(batch, channels, size, size))

    def features_of(self, net: Any, images: Images) -> list[Tensor]:
        """Return the feature maps, level by level."""
        return list(pyramid_of(net, images).maps.values())

    def runs_in_parts(self, net: nn.Module) -> bool:
        """Tell whether it runs as torchvision's do."""
        return is_standard(net)

    def regions_of(self, net: nn.Module, images: Images, *, seed: int = 0) -> Regions:
        """Return proposals and detections of ``net``; see :func:`norton_det.models.rcnn_regions.regions_of`."""
        return regions_of(net, list(images), seed)

    def parts(self, images: Images, regions: Regions | None = None) -> list[Part]:
        """Return the backbone, and with regions the RPN's head and the other heads."""
        batches: dict[nn.Module, Any] = {}  # a part may run many times

        def backbone(net: Any, _: Any) -> Any:
            if net not in batches:
                batches[net] = batch_of(net, as_inputs(images, net))
            return pyramid_of_batch(net, batches[net])

        return [backbone] if regions is None else [backbone, rpn_outputs, *self._heads(regions)]

    def _heads(self, regions: Regions) -> list[Part]:
        kinds = ("box", *(_HEAD_OF[kind] for kind in self.kinds[1:]))
        boxes = (regions.proposals if kind == "box" else regions.objects for kind in kinds)
        return [partial(head_outputs, kind=kind, boxes=some) for kind, some in zip(kinds, boxes, strict=True)]

    def outputs_of(self, net: Any, images: Images, regions: Regions | None = None) -> dict[str, list[Tensor]]:
        """Return the feature maps as "features", and with regions the logits and deltas of the RPN and of the heads."""
        backbone, *others = self.parts(images, regions)
        pyramid = backbone(net, None)
        outputs = {"features": list(pyramid.maps.values())}
        for part in others:
            outputs |= part(net, pyramid)
        return outputs

    def compared(self, net: nn.Module, *arguments: Any, size: int | None = None) -> Any:
        """Return what the parts compute before boxes are chosen; if they are not torchvision's, the detections."""
        return outputs_before_choice(net, arguments[0], size) if is_standard(net) else net(*arguments)

    def counted(self, net: nn.Module) -> nn.Module:
        """Return the detector at exactly 1000 proposals, so that the count does not depend on the weights."""
        return RCNNAtFixedProposals(net)

    def counted_per_detection(self, net: nn.Module) -> nn.Module:
        """Return the mask and keypoint heads for one detected object."""
        return HeadsOfOneDetection(net)

    def published_counts_heads(self) -> bool:
        """Tell whether this is Keypoint R-CNN, whose published MACs include the head."""
        return "keypoints" in self.kinds


def task_of(net: nn.Module) -> Task:
    """Return the task of a network of any architecture: detection for torchvision's R-CNNs, else classification."""
    return Detection(kinds_of(net)) if isinstance(net, GeneralizedRCNN) else Classification()


def kinds_of(net: nn.Module) -> tuple[str, ...]:
    """Return what an R-CNN of torchvision predicts, in COCO's words: "bbox", and "segm" or "keypoints"."""
    if kinds := getattr(net, "kinds", ()):  # a graph that was exported says so
        return tuple(kinds)
    heads: Any = getattr(net, "roi_heads", None)
    optional = (("segm", "mask_predictor"), ("keypoints", "keypoint_predictor"))
    return ("bbox", *(kind for kind, name in optional if getattr(heads, name, None) is not None))
