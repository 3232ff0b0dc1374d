"""Write the golden files of the present format version: `python tests/golden/make.py`, once for each new version.

Files that are there stay as they are: those of version0 were written in the same way by the last commit without a
version (66e2774).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN

import norton_det as nd
from norton_det.models import ARCHITECTURES
from norton_det.models.rcnn_outputs import outputs_before_choice
from norton_det.spec import VERSION

VGG = "[0.9]*7+[0.98]*6"


def inputs() -> torch.Tensor:
    """Return the images on which the files' networks have the outputs in outputs.json."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def outputs_of(net: nn.Module) -> torch.Tensor:
    """Return what is written down of a network: logits, and of Mask R-CNN the mean of each mask as well."""
    if not isinstance(net, MaskRCNN):
        return net(inputs())
    outputs = outputs_before_choice(net, list(inputs()))
    return torch.cat([outputs["box"][0], torch.cat(outputs["mask"]).mean((2, 3))], 1)


def whole_detector() -> tuple[nn.Module, nd.Spec]:
    """Return a Mask R-CNN all of whose groups are narrow: the file contains their names."""
    arch, names = "maskrcnn_cpresnet50_fpn_v2", ("__background__", "cat", "dog")
    widths = {group: 5 if group == "fpn" else 4 for group in ARCHITECTURES[arch].plan.widths}
    methods = {"backbone.fpn.layer_blocks.0.0": ("cp", 3), "roi_heads.box_head.5": ("svd", 3)}
    options = {"min_size": [32], "max_size": 32}
    spec = nd.Spec(arch, 3, methods, widths=widths, classes=names, options=options)
    torch.manual_seed(0)
    net = nd.build(spec)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    return net.eval(), spec


def _with_statistics(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net.train()
    for _ in range(3):
        net(torch.rand(8, 3, 32, 32, generator=generator))
    return net.eval()


def main() -> None:
    """Write the files."""
    folder = Path(__file__).parent / f"version{VERSION}"
    folder.mkdir(exist_ok=True)
    written = folder / "outputs.json"
    outputs = json.loads(written.read_text()) if written.exists() else {}

    def made(arch: str, **options: object) -> tuple[nn.Module, nd.Spec]:
        net, spec = nd.compress(None, arch=arch, num_classes=3, criterion="norm", **options)
        names = ("cat", "dog", "cow")
        return _with_statistics(net), replace(spec, provenance={"source": "random, seed 0"}, classes=names)

    def save(net: nn.Module, spec: nd.Spec, name: str) -> None:
        if name not in outputs:
            nd.save(net, spec, folder / name)
            outputs[name] = outputs_of(net).tolist()

    save(*made("resnet56_cifar", rank=1, rates="[0.5]+[0.75]*29"), "cp.safetensors")
    net, spec = made("vgg16_bn_cifar", rank=2, rates=VGG)
    if "checkpoint.pth" not in outputs:
        torch.save({"model": net.state_dict(), "spec": spec.to_json(), "epoch": 0}, folder / "checkpoint.pth")
        outputs["checkpoint.pth"] = outputs_of(net).tolist()
    save(nd.deploy(net, inputs(), repeats=1), spec, "deployed.safetensors")
    net, _ = nd.compress(None, arch="vgg16_bn_cifar", num_classes=3)
    net.features[1].eps = 0.5  # an attribute that the builder does not set
    net, spec = nd.decompose(net, "vgg16_bn_cifar", {"features.0": 2})
    net, spec = nd.decompose(net, spec, "[2x3]*9+[0]*3", method="tucker2")
    net, spec = nd.prune(net, spec, VGG, criterion="norm")
    save(_with_statistics(net), replace(spec, provenance={"source": "random, seed 0"}), "mixed.safetensors")
    save(*whole_detector(), "detector.safetensors")
    written.write_text(json.dumps(outputs, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
