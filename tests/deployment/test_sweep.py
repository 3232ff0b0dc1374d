"""A sweep over networks of torchvision and timm: what is deployed is equal, with the norms folded."""

import sys

import pytest
import timm
import torch
from statistics_of_norms import with_statistics
from torchvision.models import get_model

from norton_det.deployment.deploy import deploy
from norton_det.runtime.outputs import relative_difference

TORCHVISION = (
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "googlenet"),
    *("inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_0"),
    *("regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny"),
)
TIMM = (
    *("regnetx_002", "mobilenetv3_small_050", "efficientnet_b0", "resnetblur50", "seresnet50", "ecaresnet26t"),
    *("skresnet18", "res2net50_26w_4s", "dla34", "hrnet_w18_small", "ghostnet_050", "repvgg_a0", "cspresnet50"),
    *("resnetv2_50x1_bit", "nf_regnet_b0", "rexnet_100", "xception41", "vit_tiny_patch16_224"),
)
NETWORKS = [*(("torchvision", name) for name in TORCHVISION), *(("timm", name) for name in TIMM)]


@pytest.mark.slow
def test_networks_of_other_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    folded: dict[str, int] = {}
    kept: dict[str, str] = {}
    for library, name in NETWORKS:
        torch.manual_seed(0)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = timm.create_model(name) if library == "timm" else get_model(name, weights=None, **options)
        size = 224 if "vit" in name else 299 if "inception" in name else 96
        images = torch.rand(2, 3, size, size)
        fast = deploy(with_statistics(net), images, repeats=1)
        other = torch.rand(3, 3, size, size)  # other images, and another number of them
        with torch.no_grad():
            difference = relative_difference(fast(other), net(other))
        assert difference < 1e-4, (library, name, difference)
        folded[f"{library} {name}"] = len(fast.deployment.folded)
        reasons = set(fast.deployment.unchanged.values())
        if reasons:
            kept[f"{library} {name}"] = f"{len(fast.deployment.unchanged)} stay: {', '.join(sorted(reasons)[:2])}"
    lines = [f"{name}: {count} folded; {kept.get(name, 'none stays')}" for name, count in folded.items()]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", f"{len(folded)} networks deployed, equal within 1e-4", *lines, ""]))
    assert len(folded) >= 30
    assert sum(count > 0 for count in folded.values()) >= 25
