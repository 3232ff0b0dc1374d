"""CP decomposition as in the publication: ``parafac`` of tensorly, one filter after another."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from norton_det.decompositions.conv import check_finite
from norton_det.decompositions.cp_factors import CPFactors
from norton_det.errors import UsageError

ITERATIONS = 300
"""Limit of alternating least squares in the publication's code; tensorly's default is 100."""
_STARTS = 3  # tried in turn while the normal equations are singular, as in the publication's code


def parafac_decompose(weight: Tensor, rank: int, *, seed: int = 0) -> CPFactors:
    """Decompose each filter with ``tensorly.decomposition.parafac`` from one random start.

    The arguments are those of the publication's code (Pham, Zniyed, Nguyen, 2023): ``init="random"`` (uniform between 0
    and 1), ``n_iter_max=300``, and tensorly's defaults for the rest: no regularisation, the end when an iteration
    changes the relative error by less than 1e-8, factors that are not normalised. A zero filter has zero factors. Where
    the normal equations are singular, up to three starts are tried. Three things differ: the fit is in float64 on the
    CPU instead of the weight's dtype and device; the starts follow from the seed and the filter's index; a filter
    without a fit is an error instead of zero.

    Args:
        weight: the filters, of shape (O, I, Kh, Kw), any floating dtype, finite.
        rank: number of terms R.
        seed: of the random starts. The same seed gives bitwise the same factors.

    Returns:
        The factors on the CPU, float64, as tensorly returns them: the first mode carries most of a term's norm.

    Raises:
        UsageError: rank below 1; filters without a finite fit at this rank, which the message names.
        DataError: weights that are not finite; the message names the filters.
    """
    import tensorly as tl

    if rank < 1:
        raise UsageError(f"rank is {rank}; expected at least 1")
    filters = weight.detach().to("cpu", torch.float64)
    check_finite(filters, "weights")
    factors = CPFactors.zeros(len(filters), filters.shape[1:], rank)
    failed = []
    bar = tqdm(filters.numpy(), desc="parafac", unit="filter", disable=None, leave=False)
    with tl.backend_context("numpy", local_threadsafe=True):
        for index, filter_ in enumerate(bar):
            if not filter_.any():
                continue
            modes = _fit(filter_, rank, seed, index)
            if modes is None:
                failed.append(index)
                continue
            for factor, mode in zip(factors, modes, strict=True):
                factor[index] = torch.from_numpy(mode)
    if failed:
        raise UsageError(
            f"tensorly's parafac found no finite factors of filters {failed} at rank {rank} from {_STARTS} random "
            "starts: the normal equations are singular; expected a lower rank, or solver 'als'"
        )
    return factors


def _fit(filter_: NDArray[np.float64], rank: int, seed: int, index: int) -> list[NDArray[np.float64]] | None:
    """Return the factors (I, R), (Kh, R), (Kw, R) of one filter, or None where every start fails."""
    from tensorly.decomposition import parafac

    sequence = np.random.SeedSequence((seed % 2**64, index))
    random = np.random.RandomState(np.random.MT19937(sequence))
    for _ in range(_STARTS):
        try:
            with np.errstate(all="ignore"):  # what overflows is not finite in the end
                _, modes = parafac(filter_, rank, n_iter_max=ITERATIONS, init="random", random_state=random)
        except np.linalg.LinAlgError:
            continue
        if all(np.isfinite(mode).all() for mode in modes):
            return list(modes)
    return None
