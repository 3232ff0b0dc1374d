"""Data sets: COCO's format, CIFAR-10, class folders."""

from norton_det.data.augment import Augment
from norton_det.data.batching import Batching
from norton_det.data.coco import CocoDataset, annotation_file, collate, read_coco
from norton_det.data.sampling import AspectRatioBatchSampler, evaluation_batches, training_batches
from norton_det.data.shapes import make_shapes

__all__ = [
    "AspectRatioBatchSampler",
    "Augment",
    "Batching",
    "CocoDataset",
    "annotation_file",
    "collate",
    "evaluation_batches",
    "make_shapes",
    "read_coco",
    "training_batches",
]
