"""Drawing of detections, or of the truth, on an image."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.visualization.legend import Legend
from norton_det.visualization.text import Colour, Label, size_of_text, write_labels

Detections = Mapping[str, Any]
"""``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), and optionally ``scores`` (N,), ``masks`` (N, H, W)
or N masks (H, W), and ``keypoints`` (N, K, 3) as x, y, visibility."""
Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels."""
READABLE = 600
"""Smaller images are enlarged before something is drawn on them, by a whole factor; in pixels."""
_HUE_STEP = 0.618034  # the golden ratio: consecutive numbers have different hues, however many there are
_SIDE_COLOURS = {"left": (0, 150, 255), "right": (255, 120, 0)}
_EDGE = (20, 20, 20)
_WHITE = (255, 255, 255)
_MASK_OPACITY = 0.4
_CROWD = 20
"""More objects than this need no name each, if it is the same."""


def draw_detections(
    image: Tensor,
    detections: Detections,
    legend: Legend | None = None,
    *,
    side: int | None = None,
    colours: Sequence[int] | None = None,
    emphasised: Sequence[bool] | None = None,
    frames: Mapping[str, Box] | None = None,
) -> Tensor:
    """Draw boxes with names and scores, masks with outlines, and keypoints, in a colour for each object.

    Lines and letters have the size of the image. Labels overlap no other label and cover little of the other objects;
    where there is no place for one, it is left out, those of low scores first. Keypoints of the left and right side
    have two colours of their own. An image without detections says so.

    Args:
        image: (3, H, W), uint8 or float with values from 0 to 1.
        detections: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels, ``labels`` (N,), and optionally ``scores`` (N,),
            ``masks`` (N, H, W), or a sequence of masks (H, W), and ``keypoints`` (N, K, 3): as returned by
            :func:`norton_det.evaluation.predict.detect`, or a target of :class:`norton_det.data.CocoDataset`.
        legend: the names of the labels, and the names and the skeleton of the keypoints.
        side: length of the longer side of the result in pixels. None: as the image; one of less than ``READABLE`` is
            enlarged by a whole factor, so that the letters can be read.
        colours: the number of the colour of each object (:func:`colour_of`). None: 0, 1, 2, ...
        emphasised: which objects have thick lines. None: none.
        frames: parts of the image, by name, that get a white frame with their name.

    Returns:
        A new image (3, factor * H, factor * W), uint8, on the CPU.

    Example:
        >>> import torch
        >>> from norton_det.visualization.draw import draw_detections
        >>> from norton_det.visualization.legend import Legend
        >>> boxes, labels = torch.tensor([[10.0, 20.0, 50.0, 60.0]]), torch.tensor([1])
        >>> detections = {"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9])}
        >>> draw_detections(torch.zeros(3, 80, 100), detections, Legend({1: "circle"})).shape
        torch.Size([3, 480, 600])
        >>> draw_detections(torch.zeros(3, 80, 100), detections, side=200).shape
        torch.Size([3, 160, 200])
    """
    legend = legend or Legend()
    canvas, factor = _enlarged(image, side)
    size = size_of_text(*canvas.size)
    boxes = (_numbers(detections["boxes"]).reshape(-1, 4) * factor).tolist()
    hues = [colour_of(number) for number in (range(len(boxes)) if colours is None else colours)]
    lines = [_line(canvas, box) for box in boxes]
    if "masks" in detections:
        canvas = _with_masks(canvas, detections["masks"], factor, hues, lines)
    draw = ImageDraw.Draw(canvas)
    for box, colour, line, thick in zip(boxes, hues, lines, emphasised or [False] * len(boxes), strict=True):
        _rectangle(draw, box, colour, 2 * line + 1 if thick else line)
    if "keypoints" in detections:
        points = _numbers(detections["keypoints"]) * np.array([factor, factor, 1])
        for one, colour, line in zip(points, hues, lines, strict=True):
            _draw_keypoints(draw, one, legend, colour, line)
    framed = [Label(name, [edge * factor for edge in box], _WHITE) for name, box in (frames or {}).items()]
    for label in framed:
        _rectangle(draw, label.box, _WHITE, _line(canvas, label.box))
    nothing = [] if boxes else [Label("0 objects", (0, 0, *canvas.size), _WHITE)]
    write_labels(canvas, [*framed, *nothing, *_labels(detections, legend, boxes, hues)], size)
    drawn: Tensor = TF.pil_to_tensor(canvas)
    return drawn


def colour_of(number: int) -> Colour:
    """Return the colour with a number as red, green and blue, 0 to 255. It is the same in every image.

    Example:
        >>> from norton_det.visualization.draw import colour_of
        >>> colour_of(0), len({colour_of(number) for number in range(100)})
        ((255, 25, 25), 100)
    """
    red, green, blue = colorsys.hsv_to_rgb(number * _HUE_STEP % 1, 0.9, 1)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(image: Tensor, side: int | None = None) -> Tensor:
    """Return an image (3, H, W) as :func:`draw_detections` draws on it: uint8, in the size that ``side`` says."""
    pixels: Tensor = TF.pil_to_tensor(_enlarged(image, side)[0])
    return pixels


def _enlarged(image: Tensor, side: int | None) -> tuple[Image.Image, float]:
    """Return the image in the size in which it is drawn on, and its factor."""
    pixels: Tensor = TF.to_dtype(image.cpu(), torch.uint8, scale=True)
    picture: Image.Image = TF.to_pil_image(pixels)
    longer = max(picture.size)
    factor = max(1, math.ceil(READABLE / longer)) if side is None else side / longer
    if factor == 1:
        return picture, 1
    size = [max(1, round(length * factor)) for length in picture.size]
    return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC), factor


def _numbers(values: Any) -> Any:
    """Return a tensor as an array, whatever its device and type."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def scores_of(detections: Detections) -> list[float]:
    """Return the scores of the objects; 1 for the truth, which has none."""
    scores: list[float] = _numbers(detections.get("scores", torch.ones(len(detections["boxes"])))).tolist()
    return scores


def _labels(detections: Detections, legend: Legend, boxes: Sequence[Any], colours: Sequence[Colour]) -> list[Label]:
    """Return the labels of the objects, those of high scores first. A crowd of one class has its name once."""
    names = [legend.name(label) for label in torch.as_tensor(detections["labels"]).tolist()]
    scores = scores_of(detections)
    order = sorted(range(len(names)), key=lambda i: -scores[i])
    if len(names) > _CROWD and len(set(names)) == 1:
        names = [names[i] if i == order[0] else "" for i in range(len(names))]
    texts = [
        f"{name} {score:.2f}" if "scores" in detections else name for name, score in zip(names, scores, strict=True)
    ]
    return [Label(texts[i].strip(), boxes[i], colours[i]) for i in order]


def _line(canvas: Image.Image, box: Sequence[float]) -> int:
    """Return the width of the lines of an object: fit for the image, and fine for a small object."""
    fine = min(box[2] - box[0], box[3] - box[1]) / 12
    return max(1, round(min(math.sqrt(canvas.width * canvas.height) / 280, fine)))


def _rectangle(draw: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, line: int) -> None:
    """Draw a box within its edges, and a dark line around it for contrast."""
    x1, y1, x2, y2 = (round(value) for value in box)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    edge = max(1, line // 4)
    draw.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=_EDGE, width=edge)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _with_masks(
    canvas: Image.Image, masks: Any, factor: float, colours: Sequence[Colour], lines: Sequence[int]
) -> Image.Image:
    """Return the image with masks: filled half transparent, with outlines. One mask at a time is in memory."""
    pixels = np.array(canvas, dtype=np.uint8)
    for i, (colour, line) in enumerate(zip(colours, lines, strict=True)):
        mask = np.asarray(torch.as_tensor(masks[i]).cpu()).astype(bool)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        y1, y2, x1, x2 = (round(edge * factor) for edge in (top, bottom, left, right))
        part = Image.fromarray(mask[top:bottom, left:right]).convert("L")
        inside = torch.from_numpy(np.asarray(part.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)) > 127)
        region = pixels[y1:y2, x1:x2]
        fill = region[inside] * (1 - _MASK_OPACITY) + np.array(colour) * _MASK_OPACITY
        region[inside] = fill.round().astype(np.uint8)
        region[inside & ~_eroded(inside, line)] = colour
    return Image.fromarray(pixels)


def _eroded(mask: Tensor, width: int) -> Tensor:
    """Return a mask (H, W) without the pixels that are nearer than ``width`` to what is outside of it."""
    outside = torch.nn.functional.pad((~mask).float()[None], (width,) * 4, value=1)
    for kernel in ((2 * width + 1, 1), (1, 2 * width + 1)):
        outside = torch.nn.functional.max_pool2d(outside, kernel, 1)
    return outside[0] == 0


def _draw_keypoints(draw: ImageDraw.ImageDraw, points: Any, legend: Legend, colour: Colour, line: int) -> None:
    """Draw the visible keypoints of an object, and lines between them."""
    count = len(points)
    sides = legend.sides(count)
    if any(sides):
        colours = [_SIDE_COLOURS.get(side, _WHITE) for side in sides]
    else:
        colours = [colour_of(i + 1) for i in range(count)]
    for width, edge in ((line + 2, True), (line, False)):
        for a, b in legend.skeleton:
            if max(a, b) < count and points[a][2] > 0 and points[b][2] > 0:
                joined = colours[a] if any(sides) and sides[a] == sides[b] else colour
                ends = [tuple(points[i][:2]) for i in (a, b)]
                draw.line(ends, fill=_EDGE if edge else joined, width=width)
    radius = line + 2
    for (x, y, visible), inner in zip(points, colours, strict=True):
        if visible > 0:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=inner, outline=_EDGE, width=1)


def counts_of(detections: Detections, legend: Legend) -> str:
    """Return the number of objects, in total and by class.

    Example:
        >>> import torch
        >>> from norton_det.visualization.draw import counts_of
        >>> from norton_det.visualization.legend import Legend
        >>> counts_of({"labels": torch.tensor([1, 2, 2])}, Legend({1: "cat", 2: "dog"}))
        '3 objects: 2 dog, 1 cat'
        >>> counts_of({"labels": torch.tensor([])}, Legend())
        '0 objects'
    """
    names = [legend.name(label) for label in torch.as_tensor(detections["labels"]).tolist()]
    by_name = sorted({name: names.count(name) for name in names}.items(), key=lambda item: -item[1])
    total = f"{len(names)} object{'' if len(names) == 1 else 's'}"
    return total + (": " if names else "") + ", ".join(f"{count} {name}" for name, count in by_name)
