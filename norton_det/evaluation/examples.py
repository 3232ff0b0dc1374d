"""Images with the detections of a network, to look at during its training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from norton_det.data.coco.dataset import CocoDataset
from norton_det.evaluation.predict import detect
from norton_det.visualization.draw import draw_detections
from norton_det.visualization.legend import Legend


def drawn_examples(
    images: CocoDataset, names: Sequence[str], device: torch.device, network: nn.Module, *, count: int = 4
) -> dict[str, Tensor]:
    """Return the first images of a data set with the detections of a network drawn on them.

    Args:
        images: the data set.
        names: names of the classes by label.
        device: the device of the network.
        network: the detector; it is left in evaluation mode.
        count: number of images.

    Returns:
        Images (3, H, W), uint8, by names that have their ids.
    """
    network.eval()
    legend, drawn = Legend(dict(enumerate(names))), {}
    for image, target in (images[i] for i in range(min(count, len(images)))):
        drawn[f"validation/image {target['image_id']}"] = draw_detections(
            image, detect(network, image.to(device)), legend
        )
    return drawn
