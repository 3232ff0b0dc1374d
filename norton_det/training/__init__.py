"""Training: the loop, the state that is saved, and the tasks of classification and detection."""

from norton_det.errors import NonFiniteLossError
from norton_det.training.classification import Classification
from norton_det.training.detection import Detection
from norton_det.training.loop import Task, TrainOptions, train_one_epoch
from norton_det.training.state import TrainingState

__all__ = [
    "Classification",
    "Detection",
    "NonFiniteLossError",
    "Task",
    "TrainOptions",
    "TrainingState",
    "train_one_epoch",
]
