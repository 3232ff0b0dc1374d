"""Seeds of positions in a run: the same everywhere and always, and different from each other."""

import subprocess
import sys
from itertools import product

import pytest
import torch
from conftest import ENVIRONMENT
from torch import Tensor, nn

import norton_det as nd
from norton_det.data import AspectRatioBatchSampler, Batching
from norton_det.runtime.seeds import derive_seed
from norton_det.training import TrainingState, TrainOptions, train_one_epoch
from norton_det.training.optim import make_optimizer, make_schedule

# Computed once: what a run with a seed does must not change between versions of Python or of this package.
TABLE = {
    (0,): 15793235383387715774,
    (0, 0): 8668861027912758289,
    (0, 1): 4881901421217228719,
    (5, 2, 3, 1): 16290953121682392488,
    (-1, 3): 6490050908560867017,
    (2**40, 1): 15914010378241804808,
}


def test_seeds_are_those_of_the_table() -> None:
    assert {numbers: derive_seed(*numbers) for numbers in TABLE} == TABLE


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_seeds_do_not_depend_on_the_process(hash_seed: str) -> None:
    code = f"from norton_det.runtime.seeds import derive_seed\nprint([derive_seed(*n) for n in {list(TABLE)}])"
    environment = ENVIRONMENT | {"PYTHONHASHSEED": hash_seed}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(list(TABLE.values()))


def test_positions_have_different_seeds() -> None:
    positions = [(seed, *rest) for seed in range(3) for n in range(4) for rest in product(range(4), repeat=n)]
    assert len({derive_seed(*position) for position in positions}) == len(positions)


class Recorder:
    """A task that records the seed of torch's generator in each batch."""

    device, best = torch.device("cpu"), ""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def losses(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        self.seeds.append(torch.initial_seed())
        return {"loss": model(batch).sum()}

    def describe(self, batch: Tensor) -> str:
        return ""


def test_each_batch_of_training_is_seeded_by_its_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("norton_det.training.loop.rank", lambda: 1)
    net = nn.Linear(1, 1)
    optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0, weight_decay=0)
    schedule = make_schedule(optimizer, "steplr", epochs=3)
    state = TrainingState(net, nd.Spec("resnet56_cifar", 3), optimizer, schedule, epoch=1, step=2)
    task = Recorder()
    assert train_one_epoch(net, state, [torch.ones(1)] * 3, task, TrainOptions(seed=5))
    assert task.seeds == [derive_seed(5, 2, step, 1) for step in (2, 3, 4)]
    assert task.seeds[1] == TABLE[5, 2, 3, 1]


def test_the_order_of_an_epoch_is_seeded_by_its_position() -> None:
    assert Batching(1, seed=0).generator(1).initial_seed() == TABLE[0, 1]
    sampler = AspectRatioBatchSampler([1.0] * 7, batch_size=1, factor=-1, seed=0)
    sampler.set_epoch(1)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(TABLE[0, 1]))
    assert [index for batch in sampler for index in batch] == order.tolist()
