"""The first images of a data set, for a quick evaluation."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from norton_det.data.coco.checks.fields import is_id
from norton_det.evaluation.coco_results import Result


def first_images(coco: Any, count: int | None) -> Any:
    """Return annotations of the first images, in the order of their ids.

    Args:
        coco: ``pycocotools.coco.COCO`` of the annotations; it is not changed.
        count: number of images; None: all.

    Example:
        >>> import tempfile
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.evaluation.subset import first_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=3, size=64)
        ...     coco = CocoDataset(f"{folder}/shapes", "val").coco
        >>> len(coco.imgs), len(first_images(coco, 2).imgs)
        (3, 2)
    """
    if count is None:
        return coco
    ids = set(sorted(coco.imgs)[:count])
    first = type(coco)()
    first.dataset = {
        **coco.dataset,
        "images": [image for image in coco.dataset["images"] if image["id"] in ids],
        "annotations": [entry for entry in coco.dataset["annotations"] if entry["image_id"] in ids],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        first.createIndex()
    return first


def results_of(results: Sequence[Result], coco: Any, first: Any) -> list[Result]:
    """Return the results without those of images that are left out.

    Args:
        results: results of all images. Those of unknown images are kept, for the checks.
        coco: all annotations.
        first: those of the first images.
    """
    left_out = coco.imgs.keys() - first.imgs.keys()
    return [
        row
        for row in results
        if not (isinstance(row, dict) and is_id(row.get("image_id")) and row["image_id"] in left_out)
    ]
