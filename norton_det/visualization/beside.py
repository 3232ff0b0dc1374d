"""Detections of one image beside each other: of several detectors, or the truth beside a prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as TF

from norton_det.visualization.draw import Box, Detections, counts_of, draw_detections, scores_of
from norton_det.visualization.legend import Legend
from norton_det.visualization.text import bar, notice, size_of_text
from norton_det.visualization.zoom import ASPECT, part_of, parts_around

SAME = 0.5
"""Minimum IoU of boxes of two detectors that are one object, if they have one class."""
_GAP = 4
"""Width of the line between images, in pixels."""


def draw_beside(
    image: Tensor,
    detections: Mapping[str, Detections],
    legend: Legend | Mapping[str, Legend] | None = None,
    *,
    side: int | None = None,
    zooms: int = 0,
) -> Tensor:
    """Draw detections of one image beside each other, from left to right, with titles and numbers of objects.

    Objects that are the same (of one class, IoU at least ``SAME``) have the same colour everywhere. An object that the
    first or, of the first, another one lacks has thick lines.

    Args:
        image: (3, H, W), uint8 or float with values from 0 to 1.
        detections: what is drawn, as for :func:`norton_det.visualization.draw.draw_detections`, by title: of several
            detectors, or the truth and a prediction. All are compared with the first.
        legend: of all, or by title.
        side: length of the longer side of each image; as for ``draw_detections``.
        zooms: number of parts that are enlarged below the images: those with the surest of the objects that differ.

    Returns:
        A new image (3, H', W'), uint8. Its size depends on the size of the image and on the arguments alone.

    Example:
        >>> import torch
        >>> from norton_det.visualization.beside import draw_beside
        >>> from norton_det.visualization.legend import Legend
        >>> truth = {"boxes": torch.tensor([[10.0, 20.0, 50.0, 60.0]]), "labels": torch.tensor([1])}
        >>> prediction = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
        >>> both = {"truth": truth, "prediction": prediction}
        >>> draw_beside(torch.zeros(3, 80, 100), both, Legend({1: "circle"}), zooms=2).shape
        torch.Size([3, 751, 1204])
    """
    panels = _compared(detections, legend)
    alone = [
        (score, box)
        for panel in panels
        for score, box, only in zip(
            scores_of(panel.detections), panel.detections["boxes"].tolist(), panel.alone, strict=True
        )
        if only
    ]
    surest = [box for _, box in sorted(alone, key=lambda item: -item[0])]
    parts = parts_around(surest, image.shape[-1], image.shape[-2], zooms)
    return joined([_column(image, panel, parts, side, zooms) for panel in panels], 2)


def match(
    first: Detections, other: Detections, legends: tuple[Legend, Legend] = (Legend(), Legend())
) -> list[int | None]:
    """Return for each object of ``other`` the index of the one that it is in ``first``, or None.

    Two objects are one if the IoU of their boxes is at least ``SAME`` and their classes have the same name. Each is
    matched at most once, those of the largest IoU first.

    Args:
        first: ``boxes`` (N, 4) and ``labels`` (N,).
        other: the same, (M, 4) and (M,).
        legends: the names of the labels of each.

    Example:
        >>> import torch
        >>> from norton_det.visualization.beside import match
        >>> a = {"boxes": torch.tensor([[0, 0, 8, 8], [20, 20, 30, 30.0]]), "labels": torch.tensor([1, 1])}
        >>> b = {"boxes": torch.tensor([[20, 20, 30, 29.0], [0, 0, 8, 8]]), "labels": torch.tensor([1, 2])}
        >>> match(a, b)
        [1, None]
    """
    names = [
        [legend.name(label) for label in torch.as_tensor(each["labels"]).tolist()]
        for each, legend in zip((first, other), legends, strict=True)
    ]
    boxes = [torch.as_tensor(each["boxes"]).detach().cpu().double().reshape(-1, 4) for each in (first, other)]
    found: list[int | None] = [None] * len(boxes[1])
    same = torch.tensor([[a == b for a in names[0]] for b in names[1]], dtype=torch.bool)
    iou = box_iou(boxes[1], boxes[0]) * same.reshape(len(boxes[1]), len(boxes[0]))
    while iou.numel() and iou.max() >= SAME:
        i, j = divmod(int(iou.argmax()), iou.shape[1])
        found[i] = j
        iou[i], iou[:, j] = 0, 0
    return found


def joined(images: Sequence[Tensor], dim: int) -> Tensor:
    """Join images (3, H, W), uint8, with white lines between them: dim 1 downwards, 2 to the right."""
    shape = list(images[0].shape)
    shape[dim] = _GAP
    line = torch.full(shape, 255, dtype=torch.uint8)
    return torch.cat([part for image in images for part in (line, image)][1:], dim)


def with_row(drawn: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Return images that are drawn beside each other, (3, H, W), uint8, with as many below them, in their widths."""
    width = (drawn.shape[-1] + _GAP) // len(images) - _GAP
    row = [TF.resize(image, [round(image.shape[-2] * width / image.shape[-1]), width]) for image in images]
    return joined([drawn, joined(row, 2)], 1)


def titled(image: Tensor, title: str, details: str = "") -> Tensor:
    """Return an image (3, H, W), uint8, with a title above it, and details in a second line.

    Example:
        >>> import torch
        >>> from norton_det.visualization.beside import titled
        >>> titled(torch.zeros(3, 480, 640, dtype=torch.uint8), "dense", "3 objects").shape
        torch.Size([3, 522, 640])
    """
    height, width = image.shape[-2:]
    above = TF.pil_to_tensor(bar(width, size_of_text(width, height), title, details))
    return torch.cat([above, image], 1)


@dataclass(frozen=True)
class _Panel:
    """What is drawn in one image: with a colour for each object, and which objects are there alone."""

    title: str
    detections: Detections
    legend: Legend
    colours: list[int]
    alone: list[bool]

    def draw(self, image: Tensor, *, side: int | None, frames: Mapping[str, Box]) -> Tensor:
        """Return the image with the objects."""
        return draw_detections(
            image,
            self.detections,
            self.legend,
            side=side,
            colours=self.colours,
            emphasised=self.alone,
            frames=frames,
        )

    def part(self, box: Box) -> "_Panel":
        """Return what is within a part of the image."""
        chosen, detections = part_of(self.detections, box)
        colours, alone = [self.colours[i] for i in chosen], [self.alone[i] for i in chosen]
        return replace(self, detections=detections, colours=colours, alone=alone)


def _compared(detections: Mapping[str, Detections], legend: Legend | Mapping[str, Legend] | None) -> list[_Panel]:
    """Return what is drawn by title, each compared with the first."""
    legends = {title: legend[title] if isinstance(legend, Mapping) else legend or Legend() for title in detections}
    (title, first), *others = detections.items()
    count = colours = len(first["boxes"])
    panels, common = [], set(range(count))
    for name, other in others:
        matched = match(first, other, (legends[title], legends[name]))
        common &= set(matched) - {None}
        numbers = []
        for index in matched:
            numbers.append(colours if index is None else index)
            colours += index is None
        panels.append(_Panel(name, other, legends[name], numbers, [index is None for index in matched]))
    alone = [bool(others) and index not in common for index in range(count)]
    return [_Panel(title, first, legends[title], list(range(count)), alone), *panels]


def _column(image: Tensor, panel: _Panel, parts: Sequence[Box], side: int | None, zooms: int) -> Tensor:
    """Return an image with its title, and below it the enlarged parts, or empty places for them."""
    drawn = panel.draw(image, side=side, frames={str(i): part for i, part in enumerate(parts, 1)})
    alone = f"; {sum(panel.alone)} differ" if any(panel.alone) else ""
    column = titled(drawn, panel.title, counts_of(panel.detections, panel.legend) + alone)
    if not zooms:
        return column
    edges = [round(i * (drawn.shape[-1] + _GAP) / zooms) for i in range(zooms + 1)]
    height = max(1, round(ASPECT * drawn.shape[-1] / zooms))
    cells = []
    for i, (start, end) in enumerate(pairwise(edges)):
        cell = TF.pil_to_tensor(notice(end - start - _GAP, height, "nothing else to enlarge"))
        if i < len(parts):
            x1, y1, x2, y2 = parts[i]
            whole = {str(i + 1): (0, 0, x2 - x1, y2 - y1)}
            enlarged = panel.part(parts[i]).draw(image[..., y1:y2, x1:x2], side=cell.shape[-1], frames=whole)
            cell[:, : enlarged.shape[1], : enlarged.shape[2]] = enlarged[:, :height]
        cells.append(cell)
    return joined([column, joined(cells, 2)], 1)
