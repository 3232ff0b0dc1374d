"""Training and evaluation loops."""

from norton_det.training.detection import Detection
from norton_det.training.loop import NonFiniteLossError, Task, TrainOptions, train_one_epoch
from norton_det.training.state import TrainingState

__all__ = [
    "Detection",
    "NonFiniteLossError",
    "Task",
    "TrainOptions",
    "TrainingState",
    "train_one_epoch",
]
