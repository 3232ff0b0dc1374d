"""The division of a data set among processes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.data import Batching

small = st.integers(1, 9)


@settings(deadline=None)
@given(st.integers(0, 20), small, small)
def test_processes_evaluate_every_image_once(count: int, batch_size: int, world_size: int) -> None:
    """Also with more processes than images."""
    parts = [Batching(batch_size, rank=rank, world_size=world_size).evaluation(count) for rank in range(world_size)]
    assert sorted(torch.cat([torch.tensor([]), *(batch for part in parts for batch in part)]).tolist()) == [
        *range(count)
    ]
    assert all(0 < len(batch) <= batch_size for part in parts for batch in part)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
