"""The parts of torchvision's detectors that compute feature maps and predictions: between them boxes are computed."""

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

_HEADS = tuple(f"roi_heads.{kind}_{part}" for kind in ("box", "mask", "keypoint") for part in ("head", "predictor"))
_PARTS: dict[tuple[type[nn.Module], ...], tuple[str, ...]] = {
    (GeneralizedRCNN,): ("backbone", "rpn.head", *_HEADS),
    (RetinaNet, FCOS, SSD): ("backbone", "head"),
}


def parts_without_boxes(net: nn.Module) -> dict[str, nn.Module]:
    """Return the largest parts of a network that compute no boxes, by name: of one that is no detector, all of it.

    Example:
        >>> from torch import nn
        >>> from torchvision.models.detection import retinanet_resnet50_fpn
        >>> from norton_det.models.parts_without_boxes import parts_without_boxes
        >>> list(parts_without_boxes(retinanet_resnet50_fpn(weights=None, weights_backbone=None)))
        ['backbone', 'head']
        >>> list(parts_without_boxes(nn.Linear(2, 2)))
        ['']
    """
    names = next((names for kinds, names in _PARTS.items() if isinstance(net, kinds)), ("",))
    modules = dict(net.named_modules())
    return {name: modules[name] for name in names if modules.get(name) is not None}
