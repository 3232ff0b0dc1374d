"""What a detector found, drawn on the picture."""

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

_GOLDEN = 0.618034  # of the circle of hues: neighbouring labels differ, however many there are
_TITLE_HEIGHT = 16
_KEYPOINT_COLOUR = "yellow"


@dataclass(frozen=True)
class Legend:
    """What labels and keypoints mean.

    Attributes:
        names: of the labels; one without a name is shown as its number.
        skeleton: pairs of numbers, from 0, of keypoints that a line joins.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    skeleton: Sequence[tuple[int, int]] = ()

    @classmethod
    def read(cls, path: str | Path) -> "Legend":
        """Take the names and the skeleton from the categories of COCO annotations.

        Raises:
            DataError: the file is missing or has no categories.
        """
        categories = read_json(path, dict, "COCO annotations").get("categories")
        if not isinstance(categories, list) or not all(isinstance(c, dict) and "id" in c for c in categories):
            raise DataError(f"{path}: lacks categories with ids; expected COCO annotations")
        lines: list[list[int]] = next((c["skeleton"] for c in categories if "skeleton" in c), [])
        return cls({c["id"]: str(c.get("name", c["id"])) for c in categories}, [(a - 1, b - 1) for a, b in lines])


def draw_detections(image: Tensor, found: Mapping[str, Tensor], legend: Legend | None = None) -> Tensor:
    """Draw boxes with names and scores, masks, and keypoints.

    Args:
        image: (3, H, W), uint8 or float between 0 and 1.
        found: ``boxes`` (N, 4) as x1, y1, x2, y2, ``labels`` (N,), ``scores`` (N,), and where there are any ``masks``
            (N, H, W) bool and ``keypoints`` (N, K, 3), as :func:`norton_det.evaluation.predict.detect` returns them.
        legend: what the labels mean.

    Returns:
        The picture (3, H, W), uint8.
    """
    legend = legend or Legend()
    picture: Tensor = TF.to_dtype(image.cpu(), torch.uint8, scale=True)
    labels = found["labels"].tolist()
    if not labels:
        return picture
    colours = [colour_of(label) for label in labels]
    width = max(1, max(picture.shape[-2:]) // 300)
    if "masks" in found:
        picture = draw_segmentation_masks(picture, found["masks"], alpha=0.5, colors=colours)
    words = [f"{legend.names.get(v, v)} {s:.2f}" for v, s in zip(labels, found["scores"].tolist(), strict=True)]
    picture = draw_bounding_boxes(picture, found["boxes"], words, colours, width=width, fill_labels=True)
    if "keypoints" in found:
        points = found["keypoints"]
        lines = [(a, b) for a, b in legend.skeleton if max(a, b) < points.shape[1]]
        picture = draw_keypoints(
            picture, points[..., :2], lines, _KEYPOINT_COLOUR, width + 1, width, visibility=points[..., 2] > 0
        )
    return picture


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the colour of a label as red, green, blue from 0 to 255; the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.9, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def side_by_side(pictures: Mapping[str, Tensor]) -> Tensor:
    """Put pictures (3, H, W), uint8, of one size beside each other, each with its title above."""
    columns = [torch.cat([_strip(title, p.shape[-1]), p], 1) for title, p in pictures.items()]
    return torch.cat(columns, 2)


def _strip(title: str, width: int) -> Tensor:
    strip = Image.new("RGB", (width, _TITLE_HEIGHT))
    ImageDraw.Draw(strip).text((2, 2), title, fill="white")
    pixels: Tensor = TF.pil_to_tensor(strip)
    return pixels
