"""Detectors whose amount of work does not depend on the weights and whose parts are timed."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

from norton_det.cost.fixed_work import fix_work
from norton_det.runtime.timing import Stopwatch

DETECTORS = {"faster": "fasterrcnn_93g.yaml", "mask": "maskrcnn_93g.yaml", "keypoint": "keypointrcnn_96g.yaml"}
"""The R-CNNs of the benchmark and their configs."""


def watched(net: Any) -> tuple[nn.Module, dict[str, list[float]]]:
    """Fix the numbers of proposals and detections of an R-CNN in place, and time its parts.

    Returns:
        The detector, and for each part the seconds of each run. The parts are "backbone", "FPN", "RPN", "RoI heads"
        and "post-processing" (non-maximum suppression of the detections, and their scaling to the image).
    """
    parts: dict[str, list[float]] = defaultdict(list)

    def watch(owner: Any, method: str, part: str, without: str | None = None, add: bool = False) -> None:
        work: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            watch = Stopwatch()
            with watch:
                result = work(*args, **kwargs)
            seconds = watch.seconds - (parts[without][-1] if without else 0)
            if add:
                parts[part][-1] += seconds
            else:
                parts[part].append(seconds)
            return result

        setattr(owner, method, timed)

    fix_work(net)
    watch(net.backbone.body, "forward", "backbone")
    watch(net.backbone.fpn, "forward", "FPN")
    watch(net.rpn, "forward", "RPN")
    watch(net.roi_heads, "postprocess_detections", "post-processing")
    watch(net.roi_heads, "forward", "RoI heads", without="post-processing")
    watch(net.transform, "postprocess", "post-processing", add=True)
    return net, parts
