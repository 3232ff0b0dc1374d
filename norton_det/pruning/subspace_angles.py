"""Principal angles between the column spaces of many factor matrices at once."""

import torch
from torch import Tensor

from norton_det.linalg.batched import contract
from norton_det.linalg.eigenvalues import smallest_eigenvalue

_FULL_RANK = 1e-6  # smallest diagonal of R in QR, of the largest, that means full rank
_PAIRS = 2**14  # in one block


def largest_principal_cosine(factors: Tensor) -> Tensor:
    """Return the cosine of the largest principal angle between the column spaces of every two factor matrices.

    The cosines of the principal angles of two subspaces are the singular values of ``Qi.T @ Qj`` for orthonormal bases
    (Bjorck and Golub, "Numerical methods for computing angles between linear subspaces", 1973); of subspaces of
    different dimension there are as many as the smaller has. A zero matrix spans nothing, which lies in every space: 1.

    Args:
        factors: of shape (N, K, R).

    Returns:
        Cosines between 0 and 1, float64 of shape (N, N), symmetric, 1 on the diagonal.

    Example:
        >>> lines = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).unsqueeze(2)
        >>> largest_principal_cosine(lines).square().round(decimals=3)
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    bases, dimensions = orthonormal_bases(factors)
    n, k, r = bases.shape
    if bool((dimensions == k).all()):  # they all span everything
        return torch.ones(n, n, dtype=torch.float64)
    cosines = torch.empty(n, n, dtype=torch.float64)
    columns = bases.permute(2, 0, 1).contiguous()  # (R, N, K)
    block = max(1, _PAIRS // n)
    for start in range(0, n, block):
        # Only the upper triangle of pairs, the rest by symmetry.
        rows = columns[:, start : start + block].reshape(1, -1, k)
        products = (rows @ columns[:, start:].mT).view(r, r, -1)
        shared = torch.minimum(dimensions[start : start + block, None], dimensions[None, start:])
        cosines[start : start + block, start:] = _kth_singular_value(products, shared.flatten()).view(shared.shape)
    upper = cosines.triu_(1)
    return (upper + upper.T).fill_diagonal_(1)


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


def _kth_singular_value(matrices: Tensor, k: Tensor) -> Tensor:
    """Return the k-th largest singular value (1 for k = 0) of matrices (R, R, N), each between 0 and 1; k is (N,)."""
    r = len(matrices)
    if r == 1:
        value = matrices[0, 0].abs()
    else:
        squares = contract(matrices.unsqueeze(2), matrices.unsqueeze(1))
        deficient = (k < r).nonzero().flatten()  # their smallest eigenvalues stand for missing dimensions
        ascending = torch.linalg.eigvalsh(squares[..., deficient].movedim(2, 0))
        value = smallest_eigenvalue(squares)
        value[deficient] = ascending.gather(1, (r - k[deficient]).clamp(max=r - 1).unsqueeze(1)).squeeze(1)
        value = value.clamp(min=0).sqrt()
    return torch.where(k == 0, 1.0, value.clamp(max=1))
