"""Text on images: fonts, colours with contrast, labels that overlap nothing, and bars with titles."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
_MOST_LETTERS = 20  # a pixel
_ELLIPSIS = "…"
_DARK = (32, 32, 32)
_COVERED = 0.25
"""Largest fraction of an object that the label of another one may cover."""
_NEGLIGIBLE = 0.05
"""Fraction for which no worse place is taken."""


class Label(NamedTuple):
    """The label of an object.

    Attributes:
        text: the words.
        box: box of the object, as x1, y1, x2, y2 in pixels.
        colour: colour of the object, which becomes the background of the text.
    """

    text: str
    box: Sequence[float]
    colour: Colour


@lru_cache(maxsize=256)
def font_of(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font DejaVu Sans of matplotlib, which has the letters of most languages of Europe."""
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    fonts = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)


def size_of_text(width: int, height: int) -> int:
    """Return the height of a font, in pixels, that can be read on an image of this size.

    Example:
        >>> from norton_det.visualization.text import size_of_text
        >>> size_of_text(640, 480), size_of_text(4000, 3000)
        (13, 82)
    """
    return max(11, round(math.sqrt(width * height) / 42))


def contrasting(colour: Colour) -> Colour:
    """Return black or white, whichever can be read on a colour.

    Example:
        >>> from norton_det.visualization.text import contrasting
        >>> contrasting((255, 255, 0)), contrasting((0, 0, 160))
        ((0, 0, 0), (255, 255, 255))
    """
    return (0, 0, 0) if luminance(colour) > 0.179 else (255, 255, 255)  # where both have the same contrast


def luminance(colour: Colour) -> float:
    """Return the relative luminance of a colour, 0 to 1, as WCAG defines it."""
    red, green, blue = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def write_labels(canvas: Image.Image, labels: Sequence[Label], size: int) -> list[bool]:
    """Write the labels of objects at their boxes, in order of importance.

    A label overlaps no other one, is within the image, and covers little of the other objects. One for which there is
    no such place, not even in smaller letters, is left out.

    Args:
        canvas: the image; it is changed.
        labels: of the objects, the most important first; objects without a text are not covered either.
        size: height of the font in pixels.

    Returns:
        For each label, whether it was written.
    """
    draw = ImageDraw.Draw(canvas)
    boxes = np.array([label.box for label in labels], dtype=float).reshape(-1, 4)
    taken = np.zeros((0, 4))
    written = []
    for i, label in enumerate(labels):
        others = np.delete(boxes, i, 0)
        place = _place(label, size, canvas.size, taken, others) if label.text else None
        written.append(place is not None)
        if place is not None:
            box, text, font = place
            taken = np.concatenate([taken, [box]])
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=label.colour)
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.text(middle, text, fill=contrasting(label.colour), font=font, anchor="mm")
    return written


def _place(
    label: Label, size: int, bounds: tuple[int, int], taken: Any, others: Any
) -> tuple[Any, str, ImageFont.FreeTypeFont] | None:
    """Return where a label is written, its words and their font; None if there is no place."""
    for height in dict.fromkeys((size, max(10, round(0.8 * size)))):
        font = font_of(height)
        pad = max(2, height // 4)
        text = fitted(label.text, font, bounds[0] - 2 * pad)
        extent = np.array([round(font.getlength(text)) + 2 * pad, round(1.25 * height) + 2])
        candidates = [box for box in _around(label.box, extent, np.array(bounds)) if not _overlaps(box, taken)]
        covers = [max(_covered(box, others), _NEGLIGIBLE) for box in candidates]
        if covers and min(covers) <= _COVERED:
            return candidates[covers.index(min(covers))], text, font
    return None


def _around(box: Sequence[float], extent: Any, bounds: Any) -> Iterator[Any]:
    """Yield places for a label of an object, the best first: above, below, beside, and in a large object, within."""
    x1, y1, x2, y2 = box
    w, h = extent
    corners = [(x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2), (x2, y1), (x1 - w, y1), (x2, y2 - h)]
    if (x2 - x1) * (y2 - y1) > 4 * w * h:
        corners += [(x1, y1), (x2 - w, y2 - h)]
    for corner in corners:
        start = np.clip(np.round(corner), 0, np.maximum(bounds - extent, 0))
        yield np.concatenate([start, start + extent])


def _overlaps(box: Any, others: Any) -> bool:
    return bool((_shared(box, others) > 0).any())


def _covered(box: Any, others: Any) -> float:
    """Return the largest fraction of any of the other boxes that a box covers."""
    areas = (others[:, 2:] - others[:, :2]).clip(1e-6).prod(1)
    return float((_shared(box, others) / areas).max(initial=0))


def _shared(box: Any, others: Any) -> Any:
    """Return the areas that a box shares with others."""
    return (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).prod(1)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Return a text in one line that is not wider than ``width`` pixels: if need be, its middle is left out.

    Example:
        >>> from norton_det.visualization.text import fitted, font_of
        >>> fitted("a/long/path/to/checkpoint.pth", font_of(12), 100)
        'a/long/…int.pth'
        >>> fitted("short", font_of(12), 100)
        'short'
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if not text or (len(text) <= _MOST_LETTERS * width and font.getlength(text) <= width):
        return text

    def short(kept: int) -> str:
        return text[: kept // 2] + _ELLIPSIS + text[len(text) - (kept - kept // 2) :]

    counts = range(1, min(len(text), int(_MOST_LETTERS * max(width, 0)) + 1))
    return short(bisect_right(counts, width, key=lambda kept: font.getlength(short(kept))))


def bar(width: int, size: int, title: str, details: str = "") -> Image.Image:
    """Return a dark bar with a title, and details in a second line.

    Args:
        width: of the bar in pixels.
        size: height of the font in pixels.
        title: what the image below shows.
        details: more about it; cut where they do not fit.
    """
    line, pad = round(1.4 * size), round(0.5 * size)
    image = Image.new("RGB", (width, 2 * line + pad), _DARK)
    draw = ImageDraw.Draw(image)
    for i, (text, bold) in enumerate(((title, True), (details, False))):
        font = font_of(size, bold=bold)
        middle = pad / 2 + (i + 0.5) * line
        draw.text((pad, middle), fitted(text, font, width - 2 * pad), fill="white", font=font, anchor="lm")
    return image


def notice(width: int, height: int, text: str) -> Image.Image:
    """Return a dark image of this size with a text in its middle."""
    image = Image.new("RGB", (width, height), _DARK)
    font = font_of(size_of_text(width, height))
    place = width / 2, height / 2
    ImageDraw.Draw(image).text(place, fitted(text, font, width), fill="grey", font=font, anchor="mm")
    return image
