"""Preconditioned conjugate gradients for one or several linear systems."""

from collections.abc import Callable

from torch import Tensor

_TINY = 1e-300  # a direction without curvature makes no step


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    steps: int,
    dims: tuple[int, ...],
) -> Tensor:
    """Improve ``x`` in ``A x = right`` by a number of steps (Golub and Van Loan, "Matrix Computations", 11.5).

    Args:
        apply: ``x -> A x`` for a symmetric positive semi-definite A.
        right: right-hand sides.
        start: the first x, of the shape of ``right``.
        precondition: ``r -> B r`` for a symmetric B near the inverse of A; its scale does not matter.
        steps: number of steps.
        dims: dimensions that one system spans. The systems along the other dimensions are independent.

    Returns:
        The last x, of the shape of ``right``.

    Example:
        >>> import torch
        >>> matrix, right = torch.tensor([[4.0, 1.0], [1.0, 3.0]]), torch.tensor([1.0, 2.0])
        >>> conjugate_gradients(matrix.mv, right, torch.zeros(2), torch.clone, steps=2, dims=(0,))
        tensor([0.0909, 0.6364])
    """

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(dims, keepdim=True)

    x = start
    residual = right - apply(x)
    z = precondition(residual)
    direction, size = z, dot(residual, z)
    for _ in range(steps):
        product = apply(direction)
        step = size / dot(direction, product).clamp(min=_TINY)
        x, residual = x + step * direction, residual - step * product
        z = precondition(residual)
        size, previous = dot(residual, z), size
        direction = z + size / previous.clamp(min=_TINY) * direction
    return x
