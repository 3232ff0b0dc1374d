"""For ``torch.hub.load``: the backbone and the builders of this repository, by name."""

dependencies = ["torch", "torchvision", "safetensors", "tensorly", "tqdm"]

from norton_det import (  # noqa: E402, F401  torch.hub asks for the dependencies first
    backbone,
    cpresnet50,
    deeplabv3_cpresnet50,
    fasterrcnn_cpresnet50_fpn,
    fasterrcnn_cpresnet50_fpn_v2,
    fcos_cpresnet50_fpn,
    keypointrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn,
    maskrcnn_cpresnet50_fpn_v2,
    retinanet_cpresnet50_fpn,
)
