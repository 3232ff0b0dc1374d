"""Seeds of random generators that depend on a position as well: an epoch, a batch, a process."""

import numpy as np


def derive_seed(seed: int, *position: int) -> int:
    """Return the seed of one position in a run, such as (epoch,) or (epoch, batch, rank).

    The seeds of different positions are unrelated, also those of positions of different lengths, and they are the same
    in every process and with every version of Python: they are computed by ``numpy.random.SeedSequence``.

    Args:
        seed: the seed of the run; a negative one counts modulo 2**64, as in ``torch.manual_seed``.
        position: numbers from 0.

    Returns:
        A seed for ``torch.manual_seed``, from 0 to 2**64 - 1.

    Example:
        >>> from norton_det.runtime.seeds import derive_seed
        >>> derive_seed(0, 1)
        4881901421217228719
    """
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=position)
    return int(sequence.generate_state(1, np.uint64)[0])
