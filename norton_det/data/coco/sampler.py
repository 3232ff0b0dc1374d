"""Batches of images with similar aspect ratios."""

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
from norton_det.runtime.seeds import derive_seed

DetectionBatch = tuple[list[Tensor], list[Target]]
"""Images (3, H, W) and their targets, as lists."""


class AspectRatioBatchSampler(Sampler[list[int]]):
    """Random batches of images with similar aspect ratios, which need little padding.

    No image occurs twice in an epoch. At the end of an epoch the remaining images of all groups are batched together,
    and an incomplete last batch is left out. The order depends on ``seed`` and on :meth:`set_epoch` alone.

    Args:
        ratios: width / height of each image.
        batch_size: number of images in a batch.
        factor: k > 0: 2k groups on a logarithmic scale from 1/2 to 2, and one at each end; 0: two groups, wide and
            tall; -1: one group.
        seed: seed of the order.

    Example:
        >>> from norton_det.data import AspectRatioBatchSampler
        >>> batches = list(AspectRatioBatchSampler([0.5, 2.0] * 2, batch_size=2, factor=0))
        >>> sorted(sorted(batch) for batch in batches)
        [[0, 2], [1, 3]]
    """

    def __init__(self, ratios: Sequence[float], batch_size: int, factor: int = 3, seed: int = 0) -> None:
        edges = [2 ** (i / factor) for i in range(-factor, factor + 1)] if factor > 0 else [1.0] if factor == 0 else []
        self.groups = [bisect.bisect_right(edges, ratio) for ratio in ratios]
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        incomplete: dict[int, list[int]] = defaultdict(list)
        for index in torch.randperm(len(self.groups), generator=generator).tolist():
            batch = incomplete[self.groups[index]]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield incomplete.pop(self.groups[index])
        rest = [index for group in sorted(incomplete) for index in incomplete[group]]
        for start in range(0, len(rest) - self.batch_size + 1, self.batch_size):
            yield rest[start : start + self.batch_size]


def training_batches(
    data: CocoDataset, batching: Batching, epoch: int, start: int = 0, *, factor: int = 3, workers: int = 0
) -> DataLoader[DetectionBatch]:
    """Return the batches of this process in an epoch, beginning with number ``start``.

    The union of the batches of all processes has images with similar aspect ratios; see
    :class:`AspectRatioBatchSampler`.

    Args:
        data: the data set.
        batching: the division into batches.
        epoch: index of the epoch.
        start: index of the first batch.
        factor: ``factor`` of the ``AspectRatioBatchSampler``.
        workers: number of processes that read images.

    Raises:
        UsageError: there are fewer images than in one batch.
    """
    count = len(data)
    parts = batching.training(count, start)
    batch_size = batching.batch_size * batching.world_size
    sampler = AspectRatioBatchSampler(data.aspect_ratios(), batch_size, factor, batching.seed)
    sampler.set_epoch(epoch)
    order = torch.tensor([index for batch in sampler for index in batch])
    seeds = torch.randint(2**62, (count,), generator=batching.generator(epoch))
    return load(data, order, seeds, parts, workers=workers, collate=collate)


def evaluation_batches(data: CocoDataset, batching: Batching, *, workers: int = 0) -> DataLoader[DetectionBatch]:
    """Return the images of this process one by one, so that the detections in an image depend on no other image.

    Args:
        data: the data set.
        batching: the division among processes.
        workers: number of processes that read images.
    """
    count = len(data)
    parts = replace(batching, batch_size=1).evaluation(count)
    return load(data, torch.arange(count), None, parts, workers=workers, collate=collate)
