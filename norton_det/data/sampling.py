"""Batches of images of similar shape."""

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


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
