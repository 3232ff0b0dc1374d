"""RetinaNet on a compressed ResNet-50, trained on a COCO folder."""

import torch
from torchvision.models import get_model

from norton_det.data import CocoDataset  # with norton_det, its builders are known to get_model

data = CocoDataset("shapes", "train", train=True)
model = {"num_classes": data.num_classes, "min_size": 128}
detector = get_model("retinanet_cpresnet50_fpn", weights_backbone="r50.safetensors", **model)
optimizer = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
for i in range(0, len(data), 2):
    images, targets = zip(data[i], data[i + 1], strict=True)
    loss = sum(detector(list(images), list(targets)).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"{i + 2} images: loss {loss.item():.3f}")
torch.save(detector.state_dict(), "retinanet.pth")
again = get_model("retinanet_cpresnet50_fpn", weights="retinanet.pth", **model)  # compressed as its tensors are
