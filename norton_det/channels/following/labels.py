"""Labels of channels: which channels are one and the same for pruning, and which must stay, with the reason."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Labels:
    """A union-find of channels, in which classes can be fixed for a reason.

    A label is a positive number. 0 stands for what is no channel of any layer: the image, a constant. Channels are
    united where they meet in an addition or another elementwise operation, and where one layer reads both.
    """

    def __init__(self) -> None:
        self._all = [0]
        self._met = [0]
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Return ``count`` new labels, int64."""
        first = len(self._all)
        self._all += range(first, first + count)
        self._met += range(first, first + count)
        return torch.arange(first, first + count)

    def roots(self, labels: Tensor) -> list[int]:
        """Return one label for each class."""
        return [_root(self._all, label) for label in labels.tolist()]

    def met(self, labels: Tensor) -> list[int]:
        """Return one label for each class of channels that met elementwise."""
        return [_root(self._met, label) for label in labels.tolist()]

    def unite(self, first: Tensor, second: Tensor, reason: str, *, elementwise: bool = False) -> None:
        """Unite channels pairwise. One that is paired with 0 is fixed for ``reason``."""
        for one, other in set(zip(first.tolist(), second.tolist(), strict=True)):
            if one and other:
                self._join(one, other)
                if elementwise:
                    self._met[_root(self._met, one)] = _root(self._met, other)
            else:
                self.fix([one, other], reason)

    def fix(self, labels: Iterable[int] | Tensor, reason: str) -> bool:
        """Fix channels for a reason; the first reason stands. Tell whether any of them was free."""
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        free = {_root(self._all, label) for label in set(given) - {0}} - self._reasons.keys()
        self._reasons |= dict.fromkeys(free, reason)
        return bool(free)

    def reason(self, labels: Iterable[int] | Tensor) -> str | None:
        """Return the reason for which one of the channels is fixed, None if all are free."""
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        reasons = (self._reasons.get(_root(self._all, label)) for label in given)
        return next(filter(None, reasons), None)

    def _join(self, one: int, other: int) -> None:
        one, other = _root(self._all, one), _root(self._all, other)
        self._all[one] = other
        if one in self._reasons:
            self._reasons.setdefault(other, self._reasons[one])


def _root(parents: list[int], label: int) -> int:
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label
