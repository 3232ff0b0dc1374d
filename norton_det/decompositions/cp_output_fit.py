"""Output-aware CP fit: alternating least squares in the metric of a layer's inputs.

The objective is ``sum_o |(w_o - w*_o) M^1/2|^2``: w*_o are the best filters without a constraint, M is the second
moment of the unfolded inputs. Given b and c, the a of all filters are improved by preconditioned conjugate gradients,
each step one product with M. Given a, the quadratic form in b and c is small and is solved directly.
"""

import torch
from torch import Tensor

from norton_det.decompositions.cp_als import cp_decompose
from norton_det.decompositions.cp_factors import CPFactors, balanced
from norton_det.decompositions.input_metric import InputMetric
from norton_det.linalg.conjugate_gradients import conjugate_gradients
from norton_det.linalg.least_squares import LeastSquares

SWEEPS = 12
"""Alternations from each start."""
STEPS = 8
"""Steps of conjugate gradients in each sweep."""
INNER = 2
"""Alternations of b and c in each sweep."""
_TERM_RIDGE = 1e-5  # of the metric's mean diagonal, on a: bounds the degeneracy of the terms
_POSITION_RIDGE = 1e-3  # of the mean diagonal of the preconditioner's matrices over terms, which may be singular
_CHUNK = 2**26  # numbers in the largest intermediate result, 0.5 GB
_TINY = 1e-300


def fit_output(
    regression: LeastSquares, start: CPFactors, *, seed: int = 0, sweeps: int = SWEEPS, second_start: bool = True
) -> CPFactors:
    """Return CP factors whose filters have no larger output error than those of ``start``.

    Two starts are improved: ``start``, and the decomposition in the metric of the channels alone. The best result is
    kept for each filter; where neither is better, that is ``start``.

    Args:
        regression: of the O filters, with D = I * Kh * Kw.
        start: the factors so far.
        seed: of the second start.
        sweeps: alternations from each start.
        second_start: improve the second start too.
    """
    target, metric = regression.solution(), InputMetric(regression.metric, start.a.shape[1])
    starts = (start, _channel_start(target, metric, start, seed)) if second_start else (start,)
    best, error = start, regression.error(start.reconstruct().flatten(1))
    for begin in starts:
        fitted = _sweeps(target, metric, begin, sweeps)
        new = regression.error(fitted.reconstruct().flatten(1))
        better = new < error  # false for NaN
        best = CPFactors(*(torch.where(better.view(-1, 1, 1), f, b) for f, b in zip(fitted, best, strict=True)))
        error = torch.where(better, new, error)
    return best


def _channel_start(target: Tensor, metric: InputMetric, like: CPFactors, seed: int) -> CPFactors:
    """Decompose in the metric of the channels alone."""
    kernel = (like.b.shape[1], like.c.shape[1])
    factors = cp_decompose(metric.mix_channels(target).unflatten(2, kernel), like.a.shape[2], seed=seed)
    return factors._replace(a=metric.unmix_channels(factors.a))


def _sweeps(target: Tensor, metric: InputMetric, start: CPFactors, sweeps: int) -> CPFactors:
    linear = (target @ metric.matrix).view(len(target), start.a.shape[1], -1)
    a, b, c = _on_a(*start)
    for _ in range(sweeps):
        b, c = _solve_bc(metric, linear, *_on_a(a, b, c))
        a, b, c = _on_a(a, b, c)
        a = _improve_a(metric, linear, a, b, c)
    return balanced(CPFactors(a, b, c))


def _on_a(a: Tensor, b: Tensor, c: Tensor) -> CPFactors:
    """Scale the columns of b and c to norm 1; a carries the terms' norms."""
    size_b, size_c = (factor.norm(dim=1, keepdim=True).clamp(min=_TINY) for factor in (b, c))
    return CPFactors(a * (size_b * size_c), b / size_b, c / size_c)


def _improve_a(metric: InputMetric, linear: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a better a (O, I, R) for given b and c; ``linear`` is ``w*_o M``, of shape (O, I, Kh * Kw)."""
    kernels = torch.einsum("ohr,owr->ohwr", b, c).flatten(1, 2)
    ridge = _TERM_RIDGE * metric.matrix.diagonal().mean()
    gram = kernels.mT @ metric.positions @ kernels
    gram.diagonal(dim1=1, dim2=2).add_(_POSITION_RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    root, _ = torch.linalg.cholesky_ex(gram)

    def apply(x: Tensor) -> Tensor:
        filters = (x @ kernels.mT).flatten(1)
        return (filters @ metric.matrix).view(linear.shape) @ kernels + ridge * x

    def precondition(residual: Tensor) -> Tensor:
        out, inputs, rank = residual.shape
        by_channel = residual.movedim(1, 0).reshape(inputs, out * rank)
        mixed = metric.solve_channels(by_channel).view(inputs, out, rank)
        return torch.cholesky_solve(mixed.permute(1, 2, 0), root).mT

    return conjugate_gradients(apply, linear @ kernels, a, precondition, steps=STEPS, dims=(1, 2))


def _solve_bc(metric: InputMetric, linear: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Alternate b and c for a fixed a: their outer products enter a quadratic form of size Kh * Kw * R."""
    out, inputs, rank = a.shape
    kh, kw = b.shape[1], c.shape[1]
    forms = []
    for part in a.split(max(1, _CHUNK // (rank * kh * kw * len(metric.matrix)))):
        half = (part.mT.reshape(-1, inputs) @ metric.matrix.view(inputs, -1)).view(-1, rank, kh * kw, inputs, kh * kw)
        forms.append(torch.einsum("orpjq,ojs->orpsq", half, part))
    form = torch.cat(forms).view(out, rank, kh, kw, rank, kh, kw)
    right = torch.einsum("oip,oir->orp", linear, a).unflatten(2, (kh, kw))
    for _ in range(INNER):
        b = _minimum(torch.einsum("owr,orhwsgv,ovs->orhsg", c, form, c), torch.einsum("orhw,owr->orh", right, c))
        c = _minimum(torch.einsum("ohr,orhwsgv,ogs->orwsv", b, form, b), torch.einsum("orhw,ohr->orw", right, b))
    return b, c


def _minimum(form: Tensor, linear: Tensor) -> Tensor:
    """Return the x of shape (O, R, K) that minimises ``x form x / 2 - linear x``, as (O, K, R)."""
    matrix = form.flatten(3).flatten(1, 2)
    matrix.diagonal(dim1=1, dim2=2).add_(1e-9 * matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    root, _ = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(linear.flatten(1).unsqueeze(2), root).view(linear.shape).mT
