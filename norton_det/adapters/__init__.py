"""The backbone in other libraries: timm, detectron2 and mmdetection, each of which is imported only when asked for."""

from norton_det.adapters.detectron2_backbones import detectron2_backbone, register_detectron2
from norton_det.adapters.mmdet_backbones import register_mmdet
from norton_det.adapters.timm_models import register_timm

__all__ = ["detectron2_backbone", "register_detectron2", "register_mmdet", "register_timm"]
