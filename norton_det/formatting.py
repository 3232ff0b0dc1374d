"""Tables and counts as text."""

from collections.abc import Sequence
from decimal import Decimal


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


_UNITS = {"M": 10**6, "G": 10**9}


def parse_count(printed: str) -> int:
    """Return a count as printed in tables ("126.49M", "0.92G") as a number."""
    return int(Decimal(printed[:-1]) * _UNITS[printed[-1]])


def human(count: float) -> str:
    """Return a count as people write it: 899.6M, 4.09G."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.2f}{suffix}"
    return str(count)
