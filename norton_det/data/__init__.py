"""Data sets: COCO's format, CIFAR-10, class folders."""

from norton_det.data.batching import Batching
from norton_det.data.coco.dataset import CocoDataset, collate, read_coco
from norton_det.data.coco.layouts import annotation_file, find_split
from norton_det.data.coco.sampler import AspectRatioBatchSampler, evaluation_batches, training_batches
from norton_det.data.coco.synthetic_shapes import make_shapes
from norton_det.data.coco.transforms import Augment

__all__ = [
    "AspectRatioBatchSampler",
    "Augment",
    "Batching",
    "CocoDataset",
    "annotation_file",
    "collate",
    "evaluation_batches",
    "find_split",
    "make_shapes",
    "read_coco",
    "training_batches",
]
