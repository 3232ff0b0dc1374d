"""One of two processes, for test_detection_processes.py: gloo_detection.py FOLDER SHAPES ONE."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import TINY
from torch import Tensor, nn

from norton_det.builders import make_detector
from norton_det.data import Batching, CocoDataset, evaluation_batches
from norton_det.errors import DataError, TerminatedError
from norton_det.evaluation.coco import CocoEvaluator
from norton_det.models.tasks import kinds_of
from norton_det.runtime.distributed import compute_once, data_parallel, processes, rank, world_size
from norton_det.runtime.signals import catch_signals
from norton_det.training import Detection, NonFiniteLossError, TrainingState, TrainOptions, train_one_epoch
from norton_det.training.detection import keep_losses_finite
from norton_det.training.optim import make_optimizer, make_schedule


def detection(net: nn.Module, shapes: Path, folder: Path | None = None) -> Detection:
    val = CocoDataset(shapes, "val")
    kinds = kinds_of(net)
    batching = Batching(1, rank=rank(), world_size=world_size())
    batches = partial(evaluation_batches, val, batching)
    return Detection(None, batches, torch.device("cpu"), CocoEvaluator(val.coco, kinds), tuple(kinds), folder)


def evaluate(shapes: Path, folder: Path) -> Any:
    """Evaluate a detector of random weights in as many processes as there are."""
    torch.manual_seed(0)
    net, _ = make_detector("maskrcnn_cpresnet50_fpn", num_classes=4, **TINY, box_score_thresh=0.0)
    if rank() > 0:
        net.backbone.body.bn1.running_mean += 1  # each process has its own statistics; the first one's count
    return detection(net, shapes, folder).measure(net)


def target(objects: int) -> dict[str, Any]:
    boxes = torch.tensor([[4.0, 4, 30, 30]]).expand(objects, 4)
    masks = torch.zeros(objects, 64, 64, dtype=torch.uint8)
    masks[:, 4:30, 4:30] = 1
    return {"image_id": rank() + 10, "boxes": boxes, "labels": torch.ones(objects, dtype=torch.int64), "masks": masks}


def train(shapes: Path, options: TrainOptions, *batches: tuple[list[Tensor], list[dict[str, Any]]]) -> nn.Module:
    torch.manual_seed(rank())  # they begin with the first one's weights
    net, spec = make_detector("maskrcnn_cpresnet50_fpn", num_classes=4, **TINY)
    keep_losses_finite(net)
    optimizer = make_optimizer(net, "sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4)
    state = TrainingState(net, spec, optimizer, make_schedule(optimizer, "multisteplr", epochs=1, steps=[]))
    model = data_parallel(net, torch.device("cpu"))
    assert train_one_epoch(model, state, batches, detection(net, shapes), options)
    return net


def refuse() -> None:
    raise DataError("of the first one")


def end_of(run: Callable[[], object]) -> tuple[str, str]:
    """Return the exception with which something ends in this process."""
    try:
        run()
    except (DataError, TerminatedError, NonFiniteLossError) as error:
        return type(error).__name__, str(error)
    return "", ""


def signalled(shapes: Path, folder: Path) -> None:
    """Evaluate while one process gets a signal."""
    with catch_signals():
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        evaluate(shapes, folder)


def crash() -> None:
    if rank() == 1:
        raise RuntimeError("out of memory")


if __name__ == "__main__":
    folder, shapes, one = map(Path, sys.argv[1:])
    image = [torch.rand(3, 64, 64)]
    with processes("cpu", f"file://{folder / 'meeting'}"):
        told: dict[str, Any] = {"one": evaluate(one, folder), "metrics": evaluate(shapes, folder)}
        # Objects in the first process alone, then nowhere, then two batches an update.
        with_objects, without = (image, [target(1 - rank())]), (image, [target(0)])
        net = train(shapes, TrainOptions(accumulate=2), with_objects, without, with_objects)
        told["weights"] = {name: value for name, value in net.named_parameters() if value.requires_grad}
        wrong = [torch.full((3, 64, 64), float("nan" if rank() == 1 else "0"))]
        told["error"] = end_of(lambda: train(shapes, TrainOptions(), (wrong, [target(1)])))
        told["refused"] = end_of(lambda: compute_once(refuse))
        told["signalled"] = end_of(lambda: signalled(shapes, folder))
        torch.save(told, folder / f"{os.environ['RANK']}.pt")
        crash()
        train(shapes, TrainOptions(), with_objects)
