"""The shapes of annotated images, of which a detector cannot scale all."""

from torch import nn

from norton_det.data.coco.dataset import CocoDataset
from norton_det.data.coco.pixels import annotated_size
from norton_det.models.image_shapes import check_shapes


def check_scalable(detector: nn.Module, data: CocoDataset) -> None:
    """Check that a detector can scale all images of a data set. No image is read: annotations have the sizes.

    Raises:
        DataError: it cannot, as of :func:`norton_det.models.image_shapes.check_shapes`.

    Example:
        >>> import tempfile
        >>> import norton_det as nd
        >>> from norton_det.data import CocoDataset, make_shapes
        >>> from norton_det.data.coco.shapes import check_scalable
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=1, val=1, size=64)
        ...     detector = nd.fasterrcnn_cpresnet50_fpn(weights_backbone=None)
        ...     check_scalable(detector, CocoDataset(f"{folder}/shapes", "val"))
    """
    entries = (data.coco.imgs[number] for number in data.ids)
    check_shapes(detector, ((f"{data.folder}/{entry['file_name']}", *annotated_size(entry)) for entry in entries))
