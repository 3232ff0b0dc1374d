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

    Example:
        >>> from norton_det import Budget
        >>> Budget(macs=40.9e6, convention="published").targets()
        {'macs_published': 40900000.0}
    """

    macs: float | None = None
    params: float | None = None
    convention: str = "plain"

    def __bool__(self) -> bool:
        """Tell whether anything is bounded."""
        return self.macs is not None or self.params is not None

    def targets(self) -> dict[str, float]:
        """Return field of :class:`Costs` -> its limit.

        Raises:
            UsageError: nothing is bounded, or an unknown convention.
        """
        if not self:
            raise UsageError("no target; expected MACs, parameters or both")
        if self.convention not in CONVENTIONS:
            raise UsageError(f"unknown convention {self.convention!r}; expected one of: {', '.join(CONVENTIONS)}")
        bounds = {CONVENTIONS[self.convention]: self.macs, "params": self.params}
        return {name: bound for name, bound in bounds.items() if bound is not None}
