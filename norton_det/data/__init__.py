"""Data sets: COCO's format, CIFAR-10, class folders."""

from norton_det.data.augment import Augment
from norton_det.data.coco import CocoDataset, collate, read_coco
from norton_det.data.sampling import AspectRatioBatchSampler
from norton_det.data.shapes import make_shapes

__all__ = ["AspectRatioBatchSampler", "Augment", "CocoDataset", "collate", "make_shapes", "read_coco"]
