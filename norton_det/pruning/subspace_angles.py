"""Principal angles between the column spaces of many factor matrices at once."""

import torch
from torch import Tensor

_FULL_RANK = 1e-6  # smallest diagonal of R in QR, of the largest, that means full rank
_PAIRS = 2**14  # in one block
_NEAR = 0.99  # a cosine above it says little about the angle
_NUMBERS = 2**24  # in the differences of near spaces, 128 MB
_ROUNDING = 1e-12  # an angle below it is 0


def largest_principal_angle(factors: Tensor) -> Tensor:
    """Return the largest principal angle between the column spaces of every two factor matrices.

    The cosines of the principal angles of two subspaces are the singular values of ``Qi.T @ Qj`` for orthonormal bases;
    those of subspaces of different dimension are as many as the smaller has. Where the cosine is near 1, the sine is
    used, the norm of what of Qj is outside of the other space (Bjorck and Golub, "Numerical methods for computing
    angles between linear subspaces", 1973). A zero matrix spans nothing, which lies in every space: 0.

    Args:
        factors: of shape (N, K, R).

    Returns:
        Angles in radians, 0 to pi / 2, float64 of shape (N, N), symmetric, 0 on the diagonal and for equal spaces; to
        a precision of 1e-12.

    Example:
        >>> lines = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).unsqueeze(2)
        >>> largest_principal_angle(lines).rad2deg().round(decimals=3)
        tensor([[ 0., 45.],
                [45.,  0.]], dtype=torch.float64)
    """
    bases, dimensions = orthonormal_bases(factors)
    n, k, r = bases.shape
    angles = torch.zeros(n, n, dtype=torch.float64)
    if bool((dimensions == k).all()):  # they all span everything
        return angles
    columns = bases.permute(2, 0, 1).contiguous()  # (R, N, K)
    block = max(1, _PAIRS // n)
    for start in range(0, n, block):
        # Only the upper triangle of pairs, the rest by symmetry.
        rows = columns[:, start : start + block].reshape(1, -1, k)
        products = (rows @ columns[:, start:].mT).view(r, r, -1)
        shared = torch.minimum(dimensions[start : start + block, None], dimensions[None, start:])
        cosines = _kth_singular_value(products, shared.flatten()).view(shared.shape)
        part = cosines.acos()
        near = torch.nonzero(cosines > _NEAR) + start
        for pairs in near.split(max(1, _NUMBERS // (k * r))):
            part[tuple((pairs - start).T)] = _small_angles(bases, dimensions, *pairs.T)
        angles[start : start + block, start:] = part
    upper = angles.masked_fill_(angles < _ROUNDING, 0).triu_(1)
    return upper + upper.T


def spans_everything(factors: Tensor) -> bool:
    """Tell whether all factor matrices (N, K, R) have K independent columns, so that there are no angles between them.

    Example:
        >>> spans_everything(torch.eye(3).repeat(4, 1, 1)), spans_everything(torch.ones(4, 3, 3))
        (True, False)
    """
    return factors.shape[2] >= factors.shape[1] and bool((orthonormal_bases(factors)[1] == factors.shape[1]).all())


def orthonormal_bases(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of the column spaces, padded with zero columns, and their dimensions.

    Args:
        factors: of shape (N, K, R).

    Returns:
        Bases, float64 of shape (N, K, min(K, R)), and dimensions, int64 of shape (N,), as ``scipy.linalg.orth`` counts.
    """
    f = factors.detach().to("cpu", torch.float64)
    q, triangle = torch.linalg.qr(f)
    diagonal = triangle.diagonal(dim1=1, dim2=2).abs()
    if bool((diagonal.amin(1) > _FULL_RANK * diagonal.amax(1)).all()):  # no singular value is much below the diagonal
        return q, torch.full((len(q),), q.shape[2])
    u, s, _ = torch.linalg.svd(triangle, full_matrices=False)
    tolerance = torch.finfo(torch.float64).eps * max(f.shape[1:]) * s[:, :1]
    present = s > tolerance
    return (u.mT @ q.mT * present.unsqueeze(2)).mT, present.sum(1)


def _small_angles(bases: Tensor, dimensions: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the largest angle (M,) between the spaces of each pair, from its sine."""
    swap = dimensions[i] > dimensions[j]
    small, large = bases[torch.where(swap, j, i)], bases[torch.where(swap, i, j)]
    outside = small - large @ (large.mT @ small)
    square: Tensor = torch.linalg.eigvalsh(outside.mT @ outside)[:, -1]
    return square.clamp(0, 1).sqrt().asin()


def _kth_singular_value(matrices: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest singular value (1 for k = 0) of matrices (R, R, N), each between 0 and 1; k is (N,)."""
    r = len(matrices)
    if r == 1:
        values = matrices[0].abs()
    elif r == 2:
        (a, b), (c, d) = matrices
        total, difference = torch.hypot(a + d, b - c), torch.hypot(a - d, b + c)
        values = torch.stack([total + difference, (total - difference).abs()]) / 2
    else:
        values = torch.linalg.svdvals(matrices.permute(2, 0, 1)).T
    value = values.gather(0, (k - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
    return torch.where(k == 0, 1.0, value.clamp(max=1))
