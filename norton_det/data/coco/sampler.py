"""Batches of images of similar shape."""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from norton_det.data.batching import Batching
from norton_det.data.coco.dataset import CocoDataset, Target, collate
from norton_det.data.loader import load

DetectionBatch = tuple[list[Tensor], list[Target]]
"""Images (3, H, W) and their targets."""


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Random batches, each of images of one class of aspect ratios as far as it goes, so that little is padded.

    No image comes twice in an epoch. What is left of the classes at the end is batched across them; fewer images than
    a batch are dropped. The order depends on ``seed`` and :meth:`set_epoch` alone.

    Args:
        ratios: width / height of each image.
        batch_size: images a batch.
        factor: k divides the ratios from 1/2 to 2 into 2k classes, on a logarithmic scale; 0: wide and tall; -1: one.
        seed: of the order.
    """

    def __init__(self, ratios: Sequence[float], batch_size: int, factor: int = 3, seed: int = 0) -> None:
        edges = [2 ** (i / factor) for i in range(-factor, factor + 1)] if factor > 0 else [1.0] if factor == 0 else []
        self.classes = [bisect.bisect_right(edges, ratio) for ratio in ratios]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch that comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.classes) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        waiting: dict[int, list[int]] = defaultdict(list)
        for index in torch.randperm(len(self.classes), generator=generator).tolist():
            batch = waiting[self.classes[index]]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield waiting.pop(self.classes[index])
        rest = [index for key in sorted(waiting) for index in waiting[key]]
        for start in range(0, len(rest) - self.batch_size + 1, self.batch_size):
            yield rest[start : start + self.batch_size]


def training_batches(
    data: CocoDataset, batching: Batching, epoch: int, start: int = 0, *, factor: int = 3, workers: int = 0
) -> DataLoader[DetectionBatch]:
    """Return this process's batches of an epoch from number ``start`` on.

    A batch of all processes together is one of images of similar shape; see :class:`AspectRatioBatchSampler`.

    Args:
        data: the images.
        batching: how they come in batches.
        epoch: number of the epoch.
        start: number of the first batch.
        factor: of the classes of aspect ratios.
        workers: processes that read.

    Raises:
        UsageError: there are fewer images than in a batch.
    """
    count = len(data)
    parts = batching.training(count, start)
    whole = AspectRatioBatchSampler(
        data.aspect_ratios(), batching.batch_size * batching.world_size, factor, batching.seed
    )
    whole.set_epoch(epoch)
    order = torch.tensor([number for batch in whole for number in batch])
    seeds = torch.randint(2**62, (count,), generator=batching.generator(epoch))
    return load(data, order, seeds, parts, workers=workers, collate=collate)


def evaluation_batches(data: CocoDataset, batching: Batching, *, workers: int = 0) -> DataLoader[DetectionBatch]:
    """Return this process's images one by one: what is found in one then depends on no other.

    Args:
        data: the images.
        batching: which part of them is this process's.
        workers: processes that read.
    """
    count = len(data)
    parts = replace(batching, batch_size=1).evaluation(count)
    seeds = torch.zeros(count, dtype=torch.int64)  # nothing is random
    return load(data, torch.arange(count), seeds, parts, workers=workers, collate=collate)
