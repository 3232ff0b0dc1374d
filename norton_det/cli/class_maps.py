"""Class activation maps of classifiers, for ``norton-det visualize --cam``."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

import norton_det as nd
from norton_det.data.cifar import SIZE, normalize
from norton_det.data.imagenet import Preset
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, classifiers
from norton_det.visualization.beside import joined, titled
from norton_det.visualization.cam import class_map, with_map
from norton_det.visualization.draw import enlarged
from norton_det.visualization.media import Images, Video


class _Classifier(NamedTuple):
    """A classifier, and the names of its classes, which may be none."""

    net: nn.Module
    classes: tuple[str, ...]

    def name(self, label: int) -> str:
        return self.classes[label] if self.classes else f"class {label}"


def draw_classes(source: Images | Video, files: Mapping[str, str], args: argparse.Namespace) -> Path:
    """Draw each image, and beside it Grad-CAM of each classifier for the class that the first one sees.

    An image is drawn as the classifiers see it: in their size, and cut to a square.

    Args:
        source: the images.
        files: of the classifiers, by title.
        args: the arguments of the command.

    Returns:
        The folder or file that is written.

    Raises:
        UsageError: a file holds no classifier, or the classifiers take different images.
    """
    nets, data = {}, set()
    for title, file in files.items():
        net, spec = nd.load(file, args.device)
        if spec.arch not in classifiers():
            raise UsageError(f"{file}: is a {spec.arch}; expected a classifier, as {args.checkpoint} is")
        nets[title] = _Classifier(net, spec.classes)
        data.add(ARCHITECTURES[spec.arch].dataset)
    if len(data) > 1:
        raise UsageError(f"--compare {args.compare}: takes other images than {args.checkpoint}; expected the same")
    return source.write(args.output, _drawn(source, nets, data.pop(), args))


def _drawn(
    source: Images | Video, nets: Mapping[str, _Classifier], dataset: str, args: argparse.Namespace
) -> Iterator[Tensor]:
    for image in tqdm(source, desc="images", disable=None, leave=False):
        seen = _seen(image, dataset)
        inputs = normalize(seen[None]).to(args.device)
        label: int | None = None
        shown = enlarged(seen, args.side)
        panels = [titled(shown, "image", f"{image.shape[-1]}x{image.shape[-2]}")]
        for title, one in nets.items():
            with torch.inference_mode():
                scores = one.net(inputs)[0].float().softmax(0)
            best = int(scores.argmax())
            label = best if label is None else label
            where = class_map(one.net, inputs, label)
            details = f"{one.name(best)} {scores[best]:.2f}"
            if best != label:
                details += f"; map of {one.name(label)} {scores[label]:.2f}"
            size = list(shown.shape[-2:])
            scaled = torch.nn.functional.interpolate(where[None, None], size, mode="bilinear")[0, 0]
            panels.append(titled(with_map(shown, scaled), title, details))
        yield joined(panels, 2)


def _seen(image: Tensor, dataset: str) -> Tensor:
    """Return an image (3, H, W), uint8, in the size in which classifiers of a data set are evaluated."""
    preset = Preset()
    resize, crop = (SIZE, SIZE) if dataset == "cifar10" else (preset.val_resize_size, preset.val_crop_size)
    seen: Any = TF.center_crop(TF.resize(image, [resize], antialias=True), [crop, crop])
    return torch.as_tensor(seen)
