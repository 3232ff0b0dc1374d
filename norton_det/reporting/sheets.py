"""Images with what is there beside what is detected: a sample of the validation images, and the worst ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.data.coco.image_paths import image_path
from norton_det.data.coco.labels import class_names, keypoint_names
from norton_det.errors import DataError
from norton_det.evaluation.at_threshold import ImageErrors, errors_by_image
from norton_det.files import write_atomically
from norton_det.image_files import read_rgb
from norton_det.reporting.analysis import Analysis
from norton_det.visualization.beside import draw_beside
from norton_det.visualization.legend import Legend

SIDE = 480
"""Length of the longer side of an image on a sheet, in pixels."""
_GAP = 12


@dataclass(frozen=True)
class Sheet:
    """Images in one picture, and each with its caption.

    Attributes:
        images: uint8 images (3, H, W): the truth beside the detections of each detector.
        captions: of each: its file, and the numbers of objects that are found and missed, and of false alarms.
    """

    images: Sequence[Tensor]
    captions: Sequence[str]

    def write(self, path: Path) -> None:
        """Write all images, one below the other, as one picture."""
        width = max(image.shape[2] for image in self.images)
        height = sum(image.shape[1] + _GAP for image in self.images) - _GAP
        canvas, y = Image.new("RGB", (width, height), "white"), 0
        for image in self.images:
            canvas.paste(TF.to_pil_image(image), (0, y))
            y += image.shape[1] + _GAP
        write_atomically(path, lambda name: canvas.save(name, quality=85))


def make_sheets(coco: Any, folder: Path, sides: Sequence[Analysis], count: int) -> tuple[Sheet, Sheet]:
    """Return a sheet of a sample of the images, and one of the worst images of the first detector.

    The sample is spread evenly over the images with objects, in the order of their ids. The worst images have the
    largest 1 - F1 at the threshold of the best F1; those without errors are left out. So are images that cannot be
    read, see :func:`unreadable_images`.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations.
        folder: folder of the images.
        sides: the analyses of one detector or several.
        count: number of images of each sheet.
    """
    rows = _rows(sides)
    names = class_names(coco.cats.values())
    legend = Legend.of_names(["", *names.values()], keypoint_names(coco.cats.values()))
    sheets = []
    for images in _chosen(rows, sides, count):
        read = ((image, _read(coco, image, folder)) for image in images)
        drawn = {
            image: _draw(coco, image, picture, sides, legend)
            for image, picture in read
            if not isinstance(picture, DataError)
        }
        sheets.append(Sheet([*drawn.values()], [_caption(coco.imgs[image], rows[image]) for image in drawn]))
    return sheets[0], sheets[1]


def unreadable_images(coco: Any, folder: Path, sides: Sequence[Analysis], count: int) -> dict[str, str]:
    """Return the files of the images that :func:`make_sheets` leaves out, each with the reason."""
    images = dict.fromkeys(image for chosen in _chosen(_rows(sides), sides, count) for image in chosen)
    read = ((str(coco.imgs[image]["file_name"]), _read(coco, image, folder)) for image in images)
    return {file: str(picture) for file, picture in read if isinstance(picture, DataError)}


def _rows(sides: Sequence[Analysis]) -> dict[Any, ImageErrors]:
    return {row.image: row for row in errors_by_image(sides[0].matches, sides[0].threshold)}


def _chosen(rows: Mapping[Any, ImageErrors], sides: Sequence[Analysis], count: int) -> tuple[list[Any], list[Any]]:
    """Return the ids of the sample and of the worst images."""
    filled = [one.image for one in sides[0].matches.images if one.objects] or sorted(rows)
    places = np.unique(np.linspace(0, len(filled) - 1, min(count, len(filled))).round().astype(int))
    return [filled[i] for i in places], [image for image, row in rows.items() if row.error > 0][:count]


def _read(coco: Any, image: Any, folder: Path) -> Image.Image | DataError:
    """Return an image, or why it cannot be read."""
    try:
        return read_rgb(image_path(folder, coco.imgs[image]))
    except DataError as error:
        return error


def _caption(entry: Mapping[str, Any], row: ImageErrors) -> str:
    return f"{entry['file_name']}: {row.found} found, {row.missed} missed, {row.false_alarms} false alarms"


def _draw(coco: Any, image: Any, picture: Image.Image, sides: Sequence[Analysis], legend: Legend) -> Tensor:
    """Draw the truth beside the detections of each detector above its threshold."""
    panels: dict[str, Any] = {}
    for side in sides:
        matches = next(one for one in side.matches.images if one.image == image)
        if not panels:
            panels["truth"] = _entries(coco, matches.objects, side.matches.kind)
        found = [one for one in matches.detections if one["score"] >= side.threshold]
        panels[side.title] = _entries(coco, found, side.matches.kind)
    return draw_beside(TF.pil_to_tensor(picture), panels, legend, side=SIDE)


def _entries(coco: Any, entries: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """Return annotations or results as they are drawn; the labels are 1 to N in the order of the categories."""
    position = {number: i for i, number in enumerate(class_names(coco.cats.values()), start=1)}
    boxes = torch.tensor([_box(entry) for entry in entries], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    drawn: dict[str, Any] = {
        "boxes": boxes,
        "labels": torch.tensor([position[entry["category_id"]] for entry in entries]),
    }
    if entries and "score" in entries[0]:
        drawn["scores"] = torch.tensor([entry["score"] for entry in entries])
    if kind == "segm" and entries:
        drawn["masks"] = [torch.from_numpy(coco.annToMask(entry)).bool() for entry in entries]
    if kind == "keypoints" and entries:
        drawn["keypoints"] = torch.tensor([entry["keypoints"] for entry in entries]).reshape(len(entries), -1, 3)
    return drawn


def _box(entry: Mapping[str, Any]) -> Sequence[float]:
    """Return the box of an annotation or a result; of one that has none, that of its mask or keypoints."""
    from pycocotools import mask as rle

    if entry.get("bbox") is not None:
        return list(entry["bbox"])
    if entry.get("segmentation") is not None:
        return list(rle.toBbox(entry["segmentation"]))
    x, y = np.array(entry["keypoints"][0::3]), np.array(entry["keypoints"][1::3])
    return [x.min(), y.min(), np.ptp(x), np.ptp(y)]
