"""One of several processes, for test_processes.py: gloo_process.py FOLDER ARGUMENTS-OF-TRAIN_CLS."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from conftest import tool
from torch import Tensor, nn

from norton_det import Spec
from norton_det.data.batching import Batches, Batching
from norton_det.data.cifar import MemoryImages
from norton_det.evaluation.accuracy import evaluate
from norton_det.runtime.distributed import data_parallel, is_main, processes, rank, world_size
from norton_det.training import TrainingState, TrainOptions, train_one_epoch
from norton_det.training.classification import Classification
from norton_det.training.optim import make_optimizer, make_schedule

BATCH, STEPS = 8, 10


class Doubles(Batches[tuple[Tensor, Tensor]]):
    """The same batches in float64."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.double(), labels) for images, labels in super().__iter__())


def doubles(batches: Batches[tuple[Tensor, Tensor]]) -> Doubles:
    return Doubles(batches.make, batches.parts)


def train(url: str) -> dict[str, Tensor]:
    """Train a small network in as many processes as there are and return its weights and what was counted."""
    with processes("cpu", url) as device:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
        net.double()
        count = BATCH * STEPS + 3
        images = MemoryImages(
            torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(3, (count,)), list("abc")
        )
        batching = Batching(BATCH // world_size(), seed=1, rank=rank(), world_size=world_size())
        optimizer = make_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
        schedule = make_schedule(optimizer, "cosineannealinglr", epochs=1, per_epoch=STEPS)
        state = TrainingState(net, Spec("resnet56_cifar", 3), optimizer, schedule)
        options = TrainOptions(schedule_by="iteration", clip_grad_norm=1.0)
        task = Classification(lambda epoch, start: [], lambda: [], device, 3)
        model = data_parallel(net, device)
        assert train_one_epoch(model, state, doubles(images.training(batching, 0)), task, options)
        result = evaluate(net, doubles(images.evaluation(batching)), device)
        counts = torch.tensor([result.images, result.correct1, result.correct5])
        assert is_main() == (rank() == 0)
        return {**net.state_dict(), "counts": counts, "loss": torch.tensor(state.loss, dtype=torch.float64)}


if __name__ == "__main__":
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    torch.save(train(f"file://{folder / 'first'}"), folder / f"{os.environ['RANK']}.pt")
    os.chdir(folder)
    sys.exit(tool("train_cls").main([*words, "--dist-url", f"file://{folder / 'second'}"]))
