"""Numbers as arguments: types for ``add_argument`` that know their range, on the command line and in recipes alike."""

from dataclasses import dataclass
from typing import NoReturn

MOST = 2**31 - 1
"""Limit of whole numbers."""


class NumberError(Exception):
    """A text is no number of a range; the message is what was expected."""


@dataclass(frozen=True)
class Number:
    """A type of arguments: finite numbers of a range.

    Attributes:
        least: lower limit.
        most: upper limit.
        kind: ``int`` or ``float``.
        above: whether ``least`` itself is too small.

    Example:
        >>> from norton_det.cli.numbers import Number
        >>> Number(0, 1)("0.5")
        0.5
        >>> Number(0, 1)("nan")
        Traceback (most recent call last):
        norton_det.cli.numbers.NumberError: a number from 0 to 1
    """

    least: float
    most: float
    kind: type = float
    above: bool = False

    def __call__(self, text: str) -> float:
        """Return the number.

        Raises:
            NumberError: the text is none, or one outside the range.
        """
        try:
            value: float = self.kind(text)
        except (ValueError, OverflowError):
            self._refuse(self.what)
        if value < self.least and self.kind is int:
            self._refuse(f"at least {self.least}")
        if not self.least <= value <= self.most or (self.above and value == self.least):
            self._refuse(f"{self.what} {self._range()}")
        return value

    @property
    def what(self) -> str:
        """What a value is, without the range."""
        return "a whole number" if self.kind is int else "a number"

    def _range(self) -> str:
        return f"above {self.least:g}, at most {self.most:g}" if self.above else f"from {self.least:g} to {self.most:g}"

    @staticmethod
    def _refuse(expected: str) -> NoReturn:
        raise NumberError(expected)


def whole(least: int, most: int = MOST) -> Number:
    """Return the type of whole numbers of a range."""
    return Number(least, most, int)


FRACTION = Number(0, 1)
"""Probabilities, and parts of a whole."""
FACTOR = Number(0, 1e6)
"""Learning rates, weights of losses, decays."""
SEED = whole(-MOST, 2 * MOST)
"""Seeds that torch takes."""
SIDE = whole(1, 100_000)
"""Sides of images in pixels that are read or computed."""
DRAWN = 2**13
"""Limit of the sides of images that are drawn, which are in memory several times."""
