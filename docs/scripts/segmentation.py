"""DeepLabV3 on a compressed ResNet-50: objects against the background, from the masks of a COCO folder."""

import torch
from torch.nn.functional import cross_entropy
from torchvision.models import get_model

from norton_det.data import CocoDataset  # with norton_det, its builders are known to get_model

data = CocoDataset("shapes", "train", masks=True)
net = get_model("deeplabv3_cpresnet50", weights_backbone="r50.safetensors", num_classes=2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for i in range(0, len(data), 2):
    images, targets = zip(data[i], data[i + 1], strict=True)
    truth = torch.stack([target["masks"].amax(0).long() for target in targets])
    loss = cross_entropy(net(torch.stack(images))["out"], truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"{i + 2} images: loss {loss.item():.3f}")
torch.save(net.state_dict(), "segmentation.pth")  # get_model(..., weights="segmentation.pth", num_classes=2)
