"""Training and evaluation loops."""

from norton_det.engine.coco_eval import CocoEvaluator, evaluate_results, format_metrics
from norton_det.engine.detection import Detection
from norton_det.engine.evaluate import detect, kinds_of, predict
from norton_det.engine.results import to_results
from norton_det.engine.state import TrainingState
from norton_det.engine.train import NonFiniteLossError, Task, TrainOptions, train_one_epoch

__all__ = [
    "CocoEvaluator",
    "Detection",
    "NonFiniteLossError",
    "Task",
    "TrainOptions",
    "TrainingState",
    "detect",
    "evaluate_results",
    "format_metrics",
    "kinds_of",
    "predict",
    "to_results",
    "train_one_epoch",
]
