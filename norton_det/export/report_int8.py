"""The report of an export in eight bits."""

from dataclasses import asdict
from typing import Any

from norton_det.export.int8 import Quantized
from norton_det.export.report import to_dict, to_text

_SHOWN = 10


def int8_to_dict(done: Quantized) -> dict[str, Any]:
    """Return the report as JSON values; the check is that of the file in float32."""
    return {
        **to_dict(done.exported),
        "int8": {
            "layers": done.layers,
            "float_layers": dict(done.float_layers),
            "operators": dict(done.operators),
            "corrected_biases": done.corrected,
            "ranges": done.ranges,
            "calibration_images": done.images,
            "error": asdict(done.error),
            "milliseconds": dict(done.milliseconds),
            "bytes": dict(done.bytes),
        },
    }


def int8_to_text(done: Quantized) -> str:
    """Return the report in words."""
    total = done.layers + len(done.float_layers)
    operators = ", ".join(f"{count} {kind}" for kind, count in done.operators.items())
    error, time, size = done.error, done.milliseconds, done.bytes
    lines = [
        to_text(done.exported),
        "",
        "The comparison above is that of the file in float32. In eight bits:",
        f"{done.layers} of {total} layers are quantised ({done.images} images, ranges {done.ranges}), "
        f"{done.corrected} biases are corrected; onnxruntime runs {operators}",
    ]
    lines += [f"{name} stays in float32: {why:.2g}" for name, why in [*done.float_layers.items()][:_SHOWN]]
    more = len(done.float_layers) - _SHOWN
    lines += [f"... and {more} more" for _ in range(more > 0)]
    lines.append(f"on {error.images} held-out images:")
    if error.iou is not None:
        lines.append(f"scores differ by {error.relative:.2g} (relative root mean square)")
        lines.append(f"{error.same:.1%} of the detections are found again, with a mean IoU of {error.iou:.3f}")
    else:
        lines.append(f"outputs differ by {error.relative:.2g} (relative root mean square)")
        lines += [f"{error.same:.1%} have the same largest logit"] if error.same is not None else []
    lines.append(f"{time['int8']:.1f} ms against {time['float32']:.1f} ms in float32, both with onnxruntime")
    lines.append(f"{size['int8'] / 1e6:.1f} MB against {size['float32'] / 1e6:.1f} MB")
    return "\n".join(lines)
