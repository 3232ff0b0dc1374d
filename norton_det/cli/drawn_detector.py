"""A detector whose detections are drawn, timed, and written as COCO results."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from norton_det.evaluation.predict import detect
from norton_det.inference.images import Source
from norton_det.inference.result import Result
from norton_det.runtime.timing import Stopwatch
from norton_det.visualization.cam import pyramid_map
from norton_det.visualization.legend import Legend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawnDetector:
    """A detector, and what it has found so far.

    Attributes:
        title: its name in drawings.
        net: the detector.
        device: where it runs.
        threshold: minimum score of its detections.
        legend: the names of its labels and keypoints.
        kinds: what it predicts, in COCO's words.
        ids: category ids of the data by label; None: labels are category ids.
        watch: the time that it has taken.
        rows: its detections as COCO results.
        left_out: numbers of detections of classes that the data lacks, by name.
    """

    title: str
    net: nn.Module
    device: str
    threshold: float
    legend: Legend
    kinds: tuple[str, ...]
    ids: Mapping[int, Any] | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def run(self, image: Tensor, file: str) -> dict[str, Tensor]:
        """Return the detections in an image (3, H, W), uint8, of a file."""
        return detect(self.net, self._input(image), threshold=self.threshold, name=file)

    def found(self, image: Tensor, file: str, image_id: Any) -> Result:
        """Return the detections in an image (3, H, W), uint8, of a file; they are timed and noted."""
        with self.watch:
            found = self.run(image, file)
        result = Result.new(found, image.shape[-2:], self.legend, Source(Path(file), image))
        self.rows.extend(result.to_coco(image_id, self.ids))
        if self.ids is not None:
            known = {self.legend.name(label) for label in self.ids}
            self.left_out.update(name for name in result.names if name not in known)
        return result

    def map(self, image: Tensor) -> Tensor:
        """Return the class activation map of an image (3, H, W), uint8, as (H, W), 0 to 1."""
        return pyramid_map(self.net, self._input(image))

    def log_left_out(self, data: str | None) -> None:
        """Log how many detections are not among the results, because the data lacks their classes."""
        if self.left_out:
            names = ", ".join(f"{name} {count}" for name, count in self.left_out.most_common(5))
            total, more = self.left_out.total(), ", ..." if len(self.left_out) > 5 else ""
            logger.info("%s: %d detections are not in its JSON: %s lacks %s%s", self.title, total, data, names, more)

    def _input(self, image: Tensor) -> Tensor:
        prepared: Tensor = TF.to_dtype(image.to(self.device), scale=True)
        return prepared
