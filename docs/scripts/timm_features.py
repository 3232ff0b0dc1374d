"""The feature maps of a compressed ResNet-50 through timm."""

import timm
import torch

from norton_det.adapters import register_timm

register_timm()
net = timm.create_model("cpresnet50", features_only=True, out_indices=(1, 2, 3, 4), weights="r50.safetensors").eval()
info = net.feature_info
for name, channels, stride, maps in zip(
    info.module_name(), info.channels(), info.reduction(), net(torch.rand(1, 3, 224, 224)), strict=True
):
    print(f"{name}: {channels} channels, stride {stride}, {tuple(maps.shape)}")
