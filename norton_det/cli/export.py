"""Export the network in a file for other runtimes, and check what was written.

Batch norms are folded. What the new file returns is compared with what the network returns: on each image, on the first
one at other sizes, on a batch, and for a detector on an image without any detection. If anything differs by more than
rounding, no file is written. The images are those of --check-images, or generated. With --int8 that file is quantised,
and the report says what that changes on held-out calibration images.

Examples:
  norton-det export r50.safetensors --format onnx --output r50.onnx
  norton-det export out/best.safetensors --output detector.onnx --check-images coco/val2017 --check-count 20
  norton-det export out/best.safetensors --part pyramid --output backbone.onnx
  norton-det export out/best.safetensors --output detector.onnx --int8 --calibrate coco/train2017
  norton-det export retinanet.pth --model retinanet_cpresnet50_fpn --num-classes 4 --output retinanet.onnx
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model

import norton_det as nd
from norton_det.checkpoint import has_spec
from norton_det.cli.common import Parser
from norton_det.cli.numbers import FRACTION, SIDE, Number, whole
from norton_det.cli.options import check_output, json_object
from norton_det.data.calibration_set import read_calibration_set
from norton_det.errors import DataError, UsageError, one_line, shown
from norton_det.export.activations import RANGES
from norton_det.export.formats import FORMATS
from norton_det.export.images import image_paths, read_images
from norton_det.export.implementations import AUTO, NAMES
from norton_det.export.int8 import LAYER_ERROR, export_int8
from norton_det.export.preprocessing import preprocessing_of
from norton_det.export.report import to_dict, to_text
from norton_det.export.report_int8 import int8_to_dict, int8_to_text
from norton_det.runtime.run_folder import BEST
from norton_det.storage import is_file, is_folder

WHOLE, BACKBONE, PYRAMID = "whole", "backbone", "pyramid"
BUILDERS = ("deeplabv3_cpresnet50", "fcos_cpresnet50_fpn", "retinanet_cpresnet50_fpn")
"""Of networks whose files are state dicts."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    add = parser.add_argument_group("model").add_argument
    add("file", metavar="FILE", help="compressed file, training checkpoint or folder of a training")
    text = "what is exported: all, or the backbone in it, or that with its feature pyramid"
    add("--part", default=WHOLE, choices=(WHOLE, BACKBONE, PYRAMID), metavar="NAME", help=text)
    add("--model", choices=BUILDERS, metavar="NAME", help="builder of the network, needed for a state dict of one")
    add("--num-classes", type=whole(1), metavar="N", help="of --model, background included (default: the builder's)")
    add("--model-kwargs", type=json_object, metavar="JSON", help="of --model")
    add = parser.add_argument_group("export").add_argument
    add("--format", default="onnx", choices=[*FORMATS], metavar="NAME", help="of the file")
    add("--keep-norms", action="store_true", help="batch norms are not folded")
    text = "in which decomposed layers are computed; auto: the fastest of each, measured"
    add("--implementation", default=AUTO, choices=(AUTO, *NAMES), metavar="NAME", help=text)
    text = "height and width of the example, or one number for both (default: as trained, or the images')"
    add("--image-size", type=SIDE, nargs="+", metavar="S", help=text)
    add("--static", action="store_true", help="sizes and batch are those of the example, for runtimes that need that")
    add = parser.add_argument_group("eight bits").add_argument
    add("--int8", action="store_true", help="the file computes in eight bits (--format onnx)")
    text = "images for --int8: a folder of them, or a data set with training images; every fourth is held out"
    add("--calibrate", metavar="DIR", help=text)
    add("--calibrate-count", default=64, type=whole(1), metavar="N", help="how many of them, at most")
    add("--ranges", default="mse", choices=[*RANGES], metavar="NAME", help="of the values that are told apart")
    text = "relative change of a layer's own outputs above which it stays in float32"
    add("--max-layer-error", default=LAYER_ERROR, type=Number(0, 1e6, above=True), metavar="E", help=text)
    add = parser.add_argument_group("check").add_argument
    add("--check-images", metavar="DIR", help="folder with images (default: generated images)")
    add("--check-count", default=20, type=whole(1), metavar="N", help="how many of them, at most")
    add(
        "--check-threshold", default=0.3, type=FRACTION, metavar="T", help="detections with a higher score are compared"
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="FILE", help="file to write")
    add("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> None:
    """Export, check and print what was compared."""
    check_output(args.output, FORMATS[args.format].suffix)
    if not 0 <= args.check_threshold < 1:
        raise UsageError(f"--check-threshold is {args.check_threshold}; expected 0 to 1")
    _check_int8(args)
    size = _image_size(args.image_size)
    net, spec = _network(args)
    images = None
    if args.check_images is not None:
        images = read_images(args.check_images, args.check_count, preprocessing_of(net, spec))
    options: dict[str, Any] = {
        "format": args.format,
        "spec": spec,
        "image_size": size,
        "dynamic": not args.static,
        "fold": not args.keep_norms,
        "implementation": args.implementation,
        "check_images": images,
        "check_threshold": args.check_threshold,
    }
    if not args.int8:
        done = nd.export_network(net, args.output, **options)
        print(json.dumps(to_dict(done)) if args.json else to_text(done))
        return
    calibration = _calibration(args, net, spec)
    quantized = export_int8(
        net, args.output, calibration, ranges=args.ranges, max_layer_error=args.max_layer_error, **options
    )
    print(json.dumps(int8_to_dict(quantized)) if args.json else int8_to_text(quantized))


def _calibration(args: argparse.Namespace, net: nn.Module, spec: nd.Spec | None) -> Sequence[Tensor]:
    """Return images of a folder, or of the training images of a data set."""
    if spec is None or (is_folder(args.calibrate) and image_paths(args.calibrate)):
        return read_images(args.calibrate, args.calibrate_count, preprocessing_of(net, spec), drawn=True)
    return [*read_calibration_set(args.calibrate, spec.arch, args.calibrate_count)]


def _check_int8(args: argparse.Namespace) -> None:
    if not args.int8:
        if args.calibrate is not None:
            raise UsageError(f"--calibrate {args.calibrate}: is for --int8")
        return
    if args.format != "onnx":
        raise UsageError(f"--int8 with --format {args.format}; expected onnx")
    if args.calibrate is None:
        raise UsageError("--int8 without --calibrate; expected a folder with images")


def _image_size(sides: list[int] | None) -> tuple[int, int] | None:
    if sides is None:
        return None
    if len(sides) > 2 or min(sides) < 1:
        raise UsageError(f"--image-size is {' '.join(map(str, sides))}; expected a height and a width, or one number")
    return sides[0], sides[-1]


def _network(args: argparse.Namespace) -> tuple[nn.Module, nd.Spec | None]:
    """Return the network to export, and its spec if it has one."""
    file = Path(args.file) / BEST if is_folder(args.file) else Path(args.file)
    if args.model is not None:
        if args.part != WHOLE:
            raise UsageError(f"--part {args.part} with --model: expected a file with a spec")
        if not is_file(file):
            raise DataError(f"{file}: no such file; expected a state dict of {args.model}")
        options = {} if args.num_classes is None else {"num_classes": args.num_classes}
        kwargs = args.model_kwargs or {}
        try:
            return get_model(args.model, weights=str(file), **options, **kwargs).eval(), None
        except TypeError as error:
            raise UsageError(f"--model-kwargs {shown(kwargs)}: {one_line(error)}") from None
    if is_file(file) and not has_spec(file):
        raise DataError(f"{file}: holds no spec; expected a file of norton_det.save, or --model with its builder")
    if args.part != WHOLE:
        body = nd.backbone(file, fpn=args.part == PYRAMID)
        return body.eval(), body.spec
    return nd.load(file)
