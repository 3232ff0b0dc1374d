"""The libraries that compute COCO's metrics."""

import logging
from collections.abc import Callable
from typing import Any

from norton_det.errors import UsageError
from norton_det.registry import Registry

BACKENDS: Registry[Callable[[], tuple[Any, Any]]] = Registry("backend")
"""Functions that return the classes ``COCO`` and ``COCOeval`` of a library, by name."""


def _pycocotools() -> tuple[Any, Any]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _faster() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UsageError("backend 'faster' needs faster-coco-eval: pip install norton-det[fast]") from None
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    return COCO, COCOeval_faster


def _hotcoco() -> tuple[Any, Any]:
    try:
        from hotcoco import COCO, COCOeval
    except ImportError:
        raise UsageError("backend 'hotcoco' needs hotcoco: pip install norton-det[hotcoco]") from None
    return COCO, COCOeval


BACKENDS.register("pycocotools", _pycocotools)
BACKENDS.register("faster", _faster)
BACKENDS.register("hotcoco", _hotcoco)
