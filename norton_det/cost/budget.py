"""Limits of what a network costs."""

from dataclasses import dataclass
from math import inf
from typing import Protocol

from norton_det.errors import UsageError

CONVENTIONS = {"plain": "macs", "published": "macs_published"}
"""Ways to count MACs, and the field of the costs."""


class Timed(Protocol):
    """What knows how long the dense network takes."""

    dense: float
    """Milliseconds."""


@dataclass(frozen=True)
class Budget:
    """Limits of what a network costs, at the architecture's image size.

    Attributes:
        macs: limit of the multiply-accumulates; None: no limit.
        params: limit of the parameters; None: no limit.
        convention: how MACs are counted: "plain" (convolutions and linear layers) or "published" (and batch norms).
        activation_memory: limit of the bytes that a layer needs at once (``Complexity.activation_memory``); None: no
            limit.
        latency_ms: limit of the milliseconds that an image takes in the deployed network, on this machine; None: none.
        speedup: the same, as a factor to the deployed dense network.

    Example:
        >>> from norton_det import Budget
        >>> Budget(macs=40.9e6, convention="published").targets()
        {'macs_published': 40900000.0}
    """

    macs: float | None = None
    params: float | None = None
    convention: str = "plain"
    activation_memory: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None

    @property
    def timed(self) -> bool:
        """Whether the latency is bounded."""
        return self.latency_ms is not None or self.speedup is not None

    def __bool__(self) -> bool:
        """Tell whether anything is bounded."""
        return any(bound is not None for bound in (self.macs, self.params, self.activation_memory)) or self.timed

    def check(self) -> None:
        """Check that something is bounded, by what can be a limit.

        Raises:
            UsageError: nothing is, an unknown convention, or a limit that is not above 0.
        """
        if not self:
            raise UsageError("no target; expected MACs, parameters, activation memory or a latency")
        if self.convention not in CONVENTIONS:
            raise UsageError(f"unknown convention {self.convention!r}; expected one of: {', '.join(CONVENTIONS)}")
        for name in ("macs", "params", "activation_memory", "latency_ms", "speedup"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"{name} is {value}; expected more than 0")

    def targets(self, latency: Timed | None = None) -> dict[str, float]:
        """Return field of :class:`Costs`, or "latency_ms" -> its limit.

        Args:
            latency: of the dense network, where the latency is bounded.

        Raises:
            UsageError: as of :meth:`check`; or a bounded latency without ``latency``.
        """
        self.check()
        bounds = {CONVENTIONS[self.convention]: self.macs, "params": self.params}
        bounds["activation_memory"] = self.activation_memory
        if self.timed:
            if latency is None:
                raise UsageError("a bounded latency without times; expected a LatencyModel")
            by_speedup = latency.dense / self.speedup if self.speedup else inf
            bounds["latency_ms"] = min(self.latency_ms or inf, by_speedup)
        return {name: bound for name, bound in bounds.items() if bound is not None}
