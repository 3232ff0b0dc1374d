"""Ranges of a graph's tensors on calibration images, for their quantisation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from norton_det.export.contract import INPUT
from norton_det.export.onnx_graph import import_onnx, open_session
from norton_det.registry import Registry

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS = 255
"""Steps of eight bits."""
_BINS = 2048
_PERCENTILE = 0.9999
_FRACTIONS = np.linspace(0.2, 1, 81)


@dataclass
class Histogram:
    """Counts of a tensor's values in equal bins from ``low`` to ``high``, zero included.

    Attributes:
        low: the least value, at most 0.
        high: the largest, at least 0.
        counts: (2048,).
    """

    low: float = 0.0
    high: float = 0.0
    counts: Array | None = None

    @property
    def centres(self) -> Array:
        """The middle of each bin."""
        edges = np.linspace(self.low, self.high, _BINS + 1)
        middles: Array = (edges[1:] + edges[:-1]) / 2
        return middles


RANGES: Registry[Callable[[Histogram], tuple[float, float]]] = Registry("range")
"""Functions from a histogram to the range in which values are told apart, by name; others are clipped."""


def _minmax(histogram: Histogram) -> tuple[float, float]:
    """All values."""
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> tuple[float, float]:
    """All but one of 10,000 values, in both directions together."""
    counts, centres = histogram.counts, histogram.centres
    if counts is None or not counts.sum():
        return _minmax(histogram)
    kept = np.cumsum(counts) / counts.sum()
    rest = (1 - _PERCENTILE) / 2
    low, high = centres[np.searchsorted(kept, rest)], centres[np.searchsorted(kept, 1 - rest)]
    return min(0.0, float(low)), max(0.0, float(high))


def _least_squares(histogram: Histogram) -> tuple[float, float]:
    """The range, a fraction of the whole, with the least mean squared error of the quantised values."""
    counts, centres = histogram.counts, histogram.centres
    if counts is None or not counts.sum() or histogram.low == histogram.high:
        return _minmax(histogram)
    errors = [
        float((counts * (centres - quantized(centres, histogram.low * f, histogram.high * f)) ** 2).sum())
        for f in _FRACTIONS
    ]
    best = float(_FRACTIONS[int(np.argmin(errors))])
    return histogram.low * best, histogram.high * best


RANGES.register("mse", _least_squares)
RANGES.register("minmax", _minmax)
RANGES.register("percentile", _percentile)


def quantized(values: Any, low: float, high: float) -> Any:
    """Return values as eight unsigned bits over a range tell them: an array or a tensor.

    Example:
        >>> import numpy as np
        >>> from norton_det.export.activations import quantized
        >>> quantized(np.array([-1.0, 0.0, 0.9, 300.0]), 0.0, 255.0)
        array([  0.,   0.,   1., 255.])
    """
    if high <= low:
        return values * 0
    scale = (high - low) / LEVELS
    zero = round(-low / scale)
    lib: Any = torch if isinstance(values, Tensor) else np
    return (lib.clip(lib.round(values / scale) + zero, 0, LEVELS) - zero) * scale


def histograms(tensors: Callable[[], Iterable[Mapping[str, Array]]]) -> dict[str, Histogram]:
    """Return a histogram of each tensor.

    Args:
        tensors: yields the tensors by name, image by image; it is called twice, for the limits and for the counts.
    """
    found: dict[str, Histogram] = {}
    for values in tensors():
        for name, array in values.items():
            histogram = found.setdefault(name, Histogram())
            if array.size:
                histogram.low = min(histogram.low, float(array.min()))
                histogram.high = max(histogram.high, float(array.max()))
    for values in tensors():
        for name, array in values.items():
            histogram = found[name]
            if histogram.low < histogram.high:
                counts = torch.histc(torch.from_numpy(array), _BINS, histogram.low, histogram.high).double().numpy()
                histogram.counts = counts if histogram.counts is None else histogram.counts + counts
    return found


class Recorder:
    """Runs a graph and returns tensors inside it.

    Args:
        model: of onnx.
        names: of the tensors, all float32.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        onnx, _ = import_onnx()
        with_outputs = onnx.ModelProto()
        with_outputs.CopyFrom(model)
        del with_outputs.graph.output[:]
        for name in names:
            with_outputs.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self._names = [*names]
        self._session = open_session(with_outputs.SerializeToString())

    def run(self, inputs: Iterable[Tensor]) -> Iterator[dict[str, Array]]:
        """Yield the tensors by name, for each input of the graph, such as images (N, 3, H, W)."""
        for one in inputs:
            found = self._session.run(self._names, {INPUT: one.numpy()})
            yield dict(zip(self._names, found, strict=True))
