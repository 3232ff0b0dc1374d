"""Write the golden files of the present format version: `python tests/golden/make.py`, once for each new version.

Files of older versions stay as they are: those of version0 were written in the same way by the last commit without a
version (66e2774).
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import norton_det as nd
from norton_det.spec import VERSION

VGG = "[0.9]*7+[0.98]*6"


def inputs() -> torch.Tensor:
    """Return the images on which the files' networks have the outputs in outputs.json."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def _with_statistics(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net.train()
    for _ in range(3):
        net(torch.rand(8, 3, 32, 32, generator=generator))
    return net.eval()


def main() -> None:
    """Write the files."""
    folder = Path(__file__).parent / f"version{VERSION}"
    folder.mkdir()
    outputs = {}

    def made(arch: str, **options: object) -> tuple[nn.Module, nd.Spec]:
        net, spec = nd.compress(None, arch=arch, num_classes=3, criterion="norm", **options)
        names = ("cat", "dog", "cow")
        return _with_statistics(net), replace(spec, provenance={"source": "random, seed 0"}, classes=names)

    def save(net: nn.Module, spec: nd.Spec, name: str) -> None:
        nd.save(net, spec, folder / name)
        outputs[name] = net(inputs()).tolist()

    save(*made("resnet56_cifar", rank=1, rates="[0.5]+[0.75]*29"), "cp.safetensors")
    net, spec = made("vgg16_bn_cifar", rank=2, rates=VGG)
    torch.save({"model": net.state_dict(), "spec": spec.to_json(), "epoch": 0}, folder / "checkpoint.pth")
    outputs["checkpoint.pth"] = net(inputs()).tolist()
    save(nd.deploy(net, inputs(), repeats=1), spec, "deployed.safetensors")
    net, _ = nd.compress(None, arch="vgg16_bn_cifar", num_classes=3)
    net.features[1].eps = 0.5  # an attribute that the builder does not set
    net, spec = nd.decompose(net, "vgg16_bn_cifar", {"features.0": 2})
    net, spec = nd.decompose(net, spec, "[2x3]*9+[0]*3", method="tucker2")
    net, spec = nd.prune(net, spec, VGG, criterion="norm")
    save(_with_statistics(net), replace(spec, provenance={"source": "random, seed 0"}), "mixed.safetensors")
    (folder / "outputs.json").write_text(json.dumps(outputs, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
