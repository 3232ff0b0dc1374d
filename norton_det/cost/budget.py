"""Limits of what a network costs."""

from dataclasses import dataclass

from norton_det.errors import UsageError

CONVENTIONS = {"plain": "macs", "published": "macs_published"}
"""Ways to count MACs, and the field of the costs."""


@dataclass(frozen=True)
class Budget:
    """Limits of what a network costs, at the architecture's image size.

    Attributes:
        macs: limit of the multiply-accumulates; None: no limit.
        params: limit of the parameters; None: no limit.
        convention: how MACs are counted: "plain" (convolutions and linear layers) or "published" (and batch norms).
        activation_memory: limit of the bytes that a layer needs at once (``Complexity.activation_memory``); None: no
            limit.

    Example:
        >>> from norton_det import Budget
        >>> Budget(macs=40.9e6, convention="published").targets()
        {'macs_published': 40900000.0}
    """

    macs: float | None = None
    params: float | None = None
    convention: str = "plain"
    activation_memory: float | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is bounded."""
        return any(bound is not None for bound in (self.macs, self.params, self.activation_memory))

    def targets(self) -> dict[str, float]:
        """Return name of a cost -> its limit.

        Raises:
            UsageError: nothing is bounded, or an unknown convention.
        """
        if not self:
            raise UsageError("no target; expected MACs, parameters or activation memory")
        if self.convention not in CONVENTIONS:
            raise UsageError(f"unknown convention {self.convention!r}; expected one of: {', '.join(CONVENTIONS)}")
        bounds = {CONVENTIONS[self.convention]: self.macs, "params": self.params}
        bounds["activation_memory"] = self.activation_memory
        return {name: bound for name, bound in bounds.items() if bound is not None}
