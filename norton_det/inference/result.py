"""What was detected in an image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.evaluation.coco_results import to_results
from norton_det.image_files import write_image
from norton_det.inference.images import Source
from norton_det.visualization.draw import counts_of, draw_detections
from norton_det.visualization.legend import Legend


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The objects that a detector found in an image, the surest first; on the CPU.

    Attributes:
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the image.
        labels: (N,), the detector's labels.
        names: the names of the classes of the N objects; a number where the detector does not name its classes.
        scores: (N,), from 0 to 1.
        masks: COCO's compressed run lengths of each mask, as pycocotools reads them; None: the detector has no masks.
        keypoints: (N, K, 3), x and y in pixels, and 1; None: the detector has no keypoints.
        keypoint_scores: (N, K), not limited to 0 to 1; None: the detector has no keypoints.
        keypoint_names: the names of the K keypoints, or none.
        size: height and width of the image.
        source: where the image is.
        legend: names of classes and keypoints, and which of these are joined by lines.

    Example:
        See :func:`norton_det.predict`.
    """

    boxes: Tensor
    labels: Tensor
    names: tuple[str, ...]
    scores: Tensor
    masks: tuple[Mapping[str, Any], ...] | None
    keypoints: Tensor | None
    keypoint_scores: Tensor | None
    keypoint_names: tuple[str, ...]
    size: tuple[int, int]
    source: Source = field(default_factory=Source)
    legend: Legend = field(default_factory=Legend)

    @classmethod
    def new(
        cls, detections: Mapping[str, Tensor], size: Sequence[int], legend: Legend, source: Source | None = None
    ) -> "Result":
        """Return the result of the detections of :func:`norton_det.evaluation.predict.detect` or ``detect_each``."""
        masks = detections.get("masks")
        prediction = detections if masks is None or masks.ndim == 4 else {**detections, "masks": masks[:, None]}
        rows = to_results(0, prediction, size)
        has_masks = masks is not None or "mask_crops" in detections
        return cls(
            detections["boxes"],
            detections["labels"],
            tuple(map(legend.name, detections["labels"].tolist())),
            detections["scores"],
            tuple(row["segmentation"] for row in rows) if has_masks else None,
            detections.get("keypoints"),
            detections.get("keypoints_scores"),
            tuple(legend.keypoints),
            (int(size[0]), int(size[1])),
            source or Source(),
            legend,
        )

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.boxes)

    def __repr__(self) -> str:
        """Return the file, and the numbers of objects by class."""
        where = "" if self.source.file is None else f"{self.source.file}: "
        return f"Result({where}{counts_of(self.detections, self.legend)})"

    @property
    def detections(self) -> dict[str, Any]:
        """What :mod:`norton_det.visualization` draws: boxes, labels, scores, masks and keypoints, by name."""
        found: dict[str, Any] = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        if self.masks is not None:
            found["masks"] = _Decoded(self.masks)
        return found if self.keypoints is None else {**found, "keypoints": self.keypoints}

    @property
    def image(self) -> Tensor:
        """The image, (3, H, W), uint8 or float with values from 0 to 1; one from a file is read anew."""
        return self.source.pixels()

    def masks_array(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Return the masks in the size of the image, (N, H, W); (0, H, W) for a detector without masks."""
        masks = [mask.numpy() for mask in _Decoded(self.masks or ())]
        return np.stack(masks) if masks else np.zeros((0, *self.size), dtype=np.bool_)

    def draw(self, path: str | Path | None = None, *, side: int | None = None) -> Image.Image:
        """Return the image with the objects drawn in it.

        Args:
            path: an image file that is written as well.
            side: length of the longer side in pixels; see :func:`norton_det.visualization.draw.draw_detections`.
        """
        drawn: Image.Image = TF.to_pil_image(draw_detections(self.image, self.detections, self.legend, side=side))
        if path is not None:
            write_image(path, drawn)
        return drawn

    def to_coco(self, image_id: Any = 0, ids: Mapping[int, Any] | None = None) -> list[dict[str, Any]]:
        """Return the objects as COCO results, with ``category_name``, and ``file_name`` of an image in a file.

        Args:
            image_id: id of the image.
            ids: category ids by label; objects of other labels are left out. None: labels are category ids.
        """
        found = {name: value for name, value in self.detections.items() if name != "masks"}
        rows = to_results(image_id, found)
        for i, row in enumerate(rows):
            row["category_name"] = self.names[i]
            if self.source.file is not None:
                row["file_name"] = self.source.file.name
            if self.masks is not None:
                row["segmentation"] = dict(self.masks[i])
        if ids is None:
            return rows
        return [{**row, "category_id": ids[row["category_id"]]} for row in rows if row["category_id"] in ids]

    @property
    def json(self) -> str:
        """The objects as JSON text: the list of :meth:`to_coco`."""
        return json.dumps(self.to_coco())


class _Decoded(Sequence[Tensor]):
    """Masks (H, W), bool, that are decoded when they are used: in memory there is one at a time."""

    def __init__(self, masks: Sequence[Mapping[str, Any]]) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Any) -> Any:
        from pycocotools import mask as rle

        mask = self.masks[index]
        return torch.from_numpy(rle.decode({**mask, "counts": mask["counts"].encode()}).astype(bool))
