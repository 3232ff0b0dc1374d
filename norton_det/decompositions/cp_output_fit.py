"""CP decomposition that keeps a layer's output: alternating least squares in the metric of the layer's inputs.

What is minimised over the factors is ``sum_o |(w_o - w*_o) M^1/2|^2``, with w*_o the best filters without any
constraint and M the second moment of the unfolded inputs. Given b and c, the a of all filters are improved by conjugate
gradients, each step one product with M; given a, the quadratic form in b and c is small and is solved directly. M is
near to a Kronecker product of a matrix over channels and one over positions, and that one preconditions (as in Martens
and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv:1503.05671).
"""

import torch
from torch import Tensor

from norton_det.decompositions.cp_als import CPFactors, cp_decompose, share_norm
from norton_det.linalg.least_squares import Regression

SWEEPS = 12
STEPS = 8  # of conjugate gradients in each sweep
INNER = 2  # alternations of b and c in each sweep
_TERM_RIDGE = 1e-5  # of the metric's mean diagonal, on a: bounds terms that cancel each other
_CHUNK = 2**26  # numbers in the largest intermediate result, 0.5 GB
_TINY = 1e-300


def fit_output(regression: Regression, start: CPFactors, *, seed: int = 0, sweeps: int = SWEEPS) -> CPFactors:
    """Return CP factors with which each filter's output comes nearer to what is wanted.

    Two starts are improved: the given one, and the decomposition in the metric of the channels alone. The best of all
    is kept, filter by filter; where neither is better, that is the given start.

    Args:
        regression: of the O filters, with D = I * Kh * Kw.
        start: the factors so far.
        seed: of the second start.
        sweeps: alternations from each start.
    """
    target, metric = regression.solution(), regression.metric
    best, error = start, regression.error(start.reconstruct().flatten(1))
    for begin in (start, _channel_start(target, metric, start, seed)):
        fitted = _sweeps(target, metric, begin, sweeps)
        new = regression.error(fitted.reconstruct().flatten(1))
        better = new < error  # false for NaN
        best = CPFactors(*(torch.where(better.view(-1, 1, 1), f, b) for f, b in zip(fitted, best, strict=True)))
        error = torch.where(better, new, error)
    return best


def _channel_start(target: Tensor, metric: Tensor, like: CPFactors, seed: int) -> CPFactors:
    """Decompose in the metric's mean over the kernel's positions, which acts on channels alone."""
    inputs, kh, kw = (factor.shape[1] for factor in like)
    root = torch.linalg.cholesky(over_channels(metric, inputs))
    mixed = (root.mT @ target.view(-1, inputs, kh * kw)).unflatten(2, (kh, kw))
    factors = cp_decompose(mixed, like.a.shape[2], seed=seed)
    return factors._replace(a=torch.linalg.solve_triangular(root.mT, factors.a, upper=True))


def over_channels(metric: Tensor, inputs: int) -> Tensor:
    """Return the mean over the kernel's places of a metric (D, D), of shape (I, I)."""
    return metric.view(inputs, -1, inputs, metric.shape[0] // inputs).diagonal(dim1=1, dim2=3).mean(2)


def _sweeps(target: Tensor, metric: Tensor, start: CPFactors, sweeps: int) -> CPFactors:
    inputs, kh, kw = (factor.shape[1] for factor in start)
    wanted = (target @ metric).view(-1, inputs, kh * kw)
    solve_a = _SolveA(metric, wanted)
    a, b, c = _on_a(*start)
    for _ in range(sweeps):
        b, c = _solve_bc(metric, wanted, *_on_a(a, b, c))
        a, b, c = _on_a(a, b, c)
        a = solve_a(a, b, c)
    return CPFactors(*share_norm(a, b, c, a.new_ones(len(a))))


def _on_a(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale the columns of b and c to norm 1; a carries the terms' norms."""
    size_b, size_c = (factor.norm(dim=1, keepdim=True).clamp(min=_TINY) for factor in (b, c))
    return a * (size_b * size_c), b / size_b, c / size_c


class _SolveA:
    """Improves the a of all filters for given b and c by a few steps of preconditioned conjugate gradients.

    Args:
        metric: of shape (D, D), positive definite.
        wanted: the linear term ``w*_o M``, of shape (O, I, Kh * Kw).
    """

    def __init__(self, metric: Tensor, wanted: Tensor) -> None:
        inputs = wanted.shape[1]
        channels = over_channels(metric, inputs)
        self.metric, self.wanted = metric, wanted
        self.places = over_places(metric, inputs) * inputs / channels.trace()
        self.channels = torch.linalg.cholesky(channels)
        self.ridge = _TERM_RIDGE * metric.diagonal().mean()

    def __call__(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Return a better a, (O, I, R)."""
        kernels = torch.einsum("ohr,owr->ohwr", b, c).flatten(1, 2)
        gram = kernels.mT @ self.places @ kernels
        gram.diagonal(dim1=1, dim2=2).add_(1e-3 * gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
        root, _ = torch.linalg.cholesky_ex(gram)
        residual = self.wanted @ kernels - self._apply(a, kernels)
        z = self._precondition(residual, root)
        direction, size = z, _dot(residual, z)
        for _ in range(STEPS):
            product = self._apply(direction, kernels)
            step = size / _dot(direction, product).clamp(min=_TINY)
            a, residual = a + step * direction, residual - step * product
            z = self._precondition(residual, root)
            size, old = _dot(residual, z), size
            direction = z + size / old.clamp(min=_TINY) * direction
        return a

    def _apply(self, a: Tensor, kernels: Tensor) -> Tensor:
        filters = (a @ kernels.mT).flatten(1)
        return (filters @ self.metric).view(self.wanted.shape) @ kernels + self.ridge * a

    def _precondition(self, residual: Tensor, root: Tensor) -> Tensor:
        out, inputs, rank = residual.shape
        by_channel = residual.movedim(1, 0).reshape(inputs, out * rank)
        mixed = torch.cholesky_solve(by_channel, self.channels).view(inputs, out, rank)
        return torch.cholesky_solve(mixed.permute(1, 2, 0), root).mT


def over_places(metric: Tensor, inputs: int) -> Tensor:
    """Return the mean over the input channels of a metric (D, D), of shape (Kh * Kw, Kh * Kw)."""
    places = metric.shape[0] // inputs
    return metric.view(inputs, places, inputs, places).diagonal(dim1=0, dim2=2).mean(2)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum((1, 2), keepdim=True)


def _solve_bc(metric: Tensor, wanted: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Alternate b and c for a fixed a: their outer products enter a quadratic form of size Kh * Kw * R."""
    out, inputs, rank = a.shape
    kh, kw = b.shape[1], c.shape[1]
    forms = []
    for part in a.split(max(1, _CHUNK // (rank * kh * kw * len(metric)))):
        half = (part.mT.reshape(-1, inputs) @ metric.view(inputs, -1)).view(-1, rank, kh * kw, inputs, kh * kw)
        forms.append(torch.einsum("orpjq,ojs->orpsq", half, part))
    form = torch.cat(forms).view(out, rank, kh, kw, rank, kh, kw)
    linear = torch.einsum("oip,oir->orp", wanted, a).unflatten(2, (kh, kw))
    for _ in range(INNER):
        b = _minimum(torch.einsum("owr,orhwsgv,ovs->orhsg", c, form, c), torch.einsum("orhw,owr->orh", linear, c))
        c = _minimum(torch.einsum("ohr,orhwsgv,ogs->orwsv", b, form, b), torch.einsum("orhw,ohr->orw", linear, b))
    return b, c


def _minimum(form: Tensor, linear: Tensor) -> Tensor:
    """Return where ``x form x / 2 - linear x`` is smallest, for x of shape (O, R, K), as (O, K, R)."""
    matrix = form.flatten(3).flatten(1, 2)
    matrix.diagonal(dim1=1, dim2=2).add_(1e-9 * matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    root, _ = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(linear.flatten(1).unsqueeze(2), root).view(linear.shape).mT
