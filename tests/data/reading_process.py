"""For test_loader.py: read in two processes while the whole group gets SIGTERM; then fail while they read."""

import os
import signal
import sys
import time

import torch

from norton_det.data.loader import load
from norton_det.runtime.signals import catch_signals


class Slow:
    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


def batches(count: int) -> object:
    order = torch.arange(count)
    return iter(load(Slow(), order, torch.zeros(count, dtype=torch.int64), list(order.split(2)), workers=2))


if __name__ == "__main__":
    with catch_signals() as came:
        reading = batches(40)
        items = [next(reading)]
        os.killpg(0, signal.SIGTERM)
        items += list(reading)
        sys.stderr.write(f"{came()} {torch.cat(items).tolist() == list(range(40))}\n")
    reading = batches(10**6)
    next(reading)
    raise RuntimeError("failed while others read")
