"""Drawing of detections on images."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from norton_det.errors import DataError
from norton_det.files import read_json

_HUE_STEP = 0.618034  # the golden ratio: consecutive labels have different hues, for any number of labels
_TITLE_HEIGHT = 16
_KEYPOINT_COLOUR = "yellow"


@dataclass(frozen=True)
class Legend:
    """Names of the labels, and lines between keypoints.

    Attributes:
        names: the names of the labels. A label without a name is shown as a number.
        skeleton: pairs of indices, from 0, of keypoints that are joined by a line.

    Example:
        >>> from norton_det.visualization.draw import Legend
        >>> Legend({1: "person"}, skeleton=[(0, 1)]).names[1]
        'person'
    """

    names: Mapping[int, str] = field(default_factory=dict)
    skeleton: Sequence[tuple[int, int]] = ()

    @classmethod
    def read(cls, path: str | Path) -> "Legend":
        """Return the names and the skeleton in the categories of a COCO annotation file.

        Raises:
            DataError: the file is missing, is not JSON, or has no categories.
        """
        categories = read_json(path, dict, "COCO annotations").get("categories")
        if not isinstance(categories, list) or not all(isinstance(c, dict) and "id" in c for c in categories):
            raise DataError(f"{path}: lacks categories with ids; expected COCO annotations")
        lines: list[list[int]] = next((c["skeleton"] for c in categories if "skeleton" in c), [])
        names = {c["id"]: str(c["id"] if c.get("name") is None else c["name"]) for c in categories}
        return cls(names, [(a - 1, b - 1) for a, b in lines])


def draw_detections(image: Tensor, detections: Mapping[str, Tensor], legend: Legend | None = None) -> Tensor:
    """Draw boxes with names and scores, masks, and keypoints on an image.

    Args:
        image: (3, H, W), uint8 or float with values from 0 to 1.
        detections: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), ``scores`` (N,), and optionally
            ``masks`` (N, H, W) bool and ``keypoints`` (N, K, 3), as returned by
            :func:`norton_det.evaluation.predict.detect`.
        legend: the names of the labels and the skeleton of the keypoints.

    Returns:
        A new image (3, H, W), uint8, on the CPU.

    Example:
        >>> import torch
        >>> from norton_det.visualization.draw import Legend, draw_detections
        >>> boxes, labels = torch.tensor([[10.0, 20.0, 50.0, 60.0]]), torch.tensor([1])
        >>> detections = {"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9])}
        >>> draw_detections(torch.zeros(3, 80, 80), detections, Legend({1: "circle"})).shape
        torch.Size([3, 80, 80])
    """
    legend = legend or Legend()
    canvas: Tensor = TF.to_dtype(image.cpu(), torch.uint8, scale=True)
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    if not labels:
        return canvas
    colours = [colour_of(label) for label in labels]
    width = max(1, max(canvas.shape[-2:]) // 300)
    if "masks" in detections:
        canvas = draw_segmentation_masks(canvas, detections["masks"], alpha=0.5, colors=colours)
    texts = [f"{legend.names.get(label, label)} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    canvas = draw_bounding_boxes(canvas, detections["boxes"], texts, colours, width=width, fill_labels=True)
    if "keypoints" in detections:
        points = detections["keypoints"]
        lines = [(a, b) for a, b in legend.skeleton if max(a, b) < points.shape[1]]
        canvas = draw_keypoints(
            canvas, points[..., :2], lines, _KEYPOINT_COLOUR, width + 1, width, visibility=points[..., 2] > 0
        )
    return canvas


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of a label as red, green and blue, 0 to 255. It is the same in every image."""
    red, green, blue = colorsys.hsv_to_rgb(label * _HUE_STEP % 1, 0.9, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def side_by_side(images: Mapping[str, Tensor]) -> Tensor:
    """Join images of equal size, (3, H, W), uint8, from left to right, with their titles above.

    Example:
        >>> import torch
        >>> from norton_det.visualization.draw import side_by_side
        >>> image = torch.zeros(3, 20, 30, dtype=torch.uint8)
        >>> side_by_side({"dense": image, "compressed": image}).shape
        torch.Size([3, 36, 60])
    """
    columns = [torch.cat([_title_bar(title, image.shape[-1]), image], 1) for title, image in images.items()]
    return torch.cat(columns, 2)


def _title_bar(title: str, width: int) -> Tensor:
    bar = Image.new("RGB", (width, _TITLE_HEIGHT))
    ImageDraw.Draw(bar).text((2, 2), title, fill="white")
    pixels: Tensor = TF.pil_to_tensor(bar)
    return pixels
