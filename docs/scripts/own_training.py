"""A training loop of one's own: how many objects are in an image, from the last feature map."""

import torch
from torch import nn

import norton_det as nd
from norton_det.data import CocoDataset

data = CocoDataset("shapes", "train")
backbone = nd.backbone("r50.safetensors", out_indices=(4,))
head = nn.Linear(backbone.out_channels, 1)
optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-4)
for i in range(0, len(data), 2):
    images, targets = zip(data[i], data[i + 1], strict=True)
    counted = head(backbone(torch.stack(images))["0"].mean((2, 3))).squeeze(1)
    loss = (counted - torch.tensor([float(len(t["boxes"])) for t in targets])).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
backbone.save("counting.safetensors")
