"""Tables and counts as text."""

import html
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from tabulate import tabulate

from norton_det.errors import printable

_FORMATS = {"text": "simple", "markdown": "github"}  # names of tabulate
_UNITS = {"G": 10**9, "M": 10**6, "k": 10**3}


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    style: Literal["text", "markdown"] = "text",
    words: Sequence[str] = (),
) -> str:
    """Return a table.

    Args:
        header: the name of each column.
        rows: the cells of each row, as many as there are columns; ``str`` is applied to them, and what is not printed,
            or has a meaning in Markdown, is escaped.
        style: "text", for a terminal: the first column is aligned to the left and the others, mostly numbers, to the
            right; or "markdown".
        words: names of other columns that are aligned to the left.

    Example:
        >>> from norton_det.formatting import table
        >>> print(table(("layer", "MACs"), [("conv1", "1.24G"), ("fc", "2.05M")]))
        layer      MACs
        -------  ------
        conv1     1.24G
        fc        2.05M
    """
    cells = [[_cell(cell, style) for cell in row] for row in rows]
    header = [_cell(name, style) for name in header]
    sides = ["left" if i == 0 or name in words else "right" for i, name in enumerate(header)]
    alignment = sides if style == "text" else None
    lines = tabulate(cells, header, _FORMATS[style], disable_numparse=True, colalign=alignment).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object, style: str) -> str:
    text = printable(str(value))
    return html.escape(text, quote=False).replace("|", r"\|") if style == "markdown" else text


def format_count(count: float) -> str:
    """Return a count with a unit and two digits after the point.

    Example:
        >>> from norton_det.formatting import format_count
        >>> format_count(4_089_284_608)
        '4.09G'
    """
    for unit, size in _UNITS.items():
        if abs(count) >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def parse_count(text: str) -> int:
    """Return the count that a text with a unit states.

    Raises:
        ValueError: the text is no number with a unit.

    Example:
        >>> from norton_det.formatting import parse_count
        >>> parse_count("126.49M")
        126490000
    """
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.replace(".", "", 1).isdecimal():
        raise ValueError(f"count is {text!r}; expected a number with a unit, as 126.49M or 0.92G")
    return int(Decimal(number) * _UNITS[unit])
