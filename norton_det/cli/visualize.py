r"""Draw detections on images or a video, of two detectors side by side if wanted, and measure their speeds.

The detector's time is that of an image on its way from memory to boxes, masks and keypoints in memory, one image at a
time. The total time is everything: reading, all detectors, drawing and writing.

Example:
  norton-det visualize --checkpoint dense.pth --compare compressed.pth --input street.mp4 --output drawn \
      --annotations coco/annotations/instances_val2017.json
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from norton_det.builders.load_detector import read_detector
from norton_det.cli.common import Parser
from norton_det.cli.options import add_device, add_image_size
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.predict import detect
from norton_det.formatting import table
from norton_det.runtime.timing import Stopwatch
from norton_det.visualization.beside import draw_beside
from norton_det.visualization.draw import draw_detections
from norton_det.visualization.legend import Legend
from norton_det.visualization.media import Images, Video, open_images

logger = logging.getLogger(__name__)
_ZOOMS = 3


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="training checkpoint, or file of norton-det compress")
    add("--compare", metavar="FILE", help="another one, drawn beside it")
    add_image_size(group)
    add("--score-thresh", default=0.5, type=float, metavar="P", help="minimum score of what is drawn")
    add_device(group)
    add = parser.add_argument_group("data").add_argument
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders of images, or one video")
    add(
        "--annotations",
        metavar="FILE",
        help="COCO annotations: skeleton, orientation of the images, names of classes that a file does not name",
    )
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="DIR", help="folder for the images, or for the video as MP4")
    add("--json", action="store_true", help="print the speeds as JSON")


@dataclass(frozen=True)
class _Detector:
    """A detector, where it runs, the minimum score of its detections, the names of its labels, and its time."""

    net: nn.Module
    device: str
    threshold: float
    legend: Legend
    watch: Stopwatch = field(default_factory=Stopwatch)

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        """Return the detections on an image (3, H, W), uint8."""
        with self.watch:
            return detect(self.net, TF.to_dtype(image.to(self.device), scale=True), threshold=self.threshold)


def run(args: argparse.Namespace) -> None:
    """Draw and print the speeds."""
    if args.compare is not None and Path(args.compare) == Path(args.checkpoint):
        raise UsageError(f"--compare {args.compare}: is --checkpoint; expected another file")
    source = open_images(args.input, args.annotations)
    legend = Legend.read(args.annotations) if args.annotations else Legend()
    detectors = {file: _load(file, args, legend) for file in (args.checkpoint, args.compare) if file is not None}
    _warm_up(detectors, source)
    start = time.perf_counter()
    output = source.write(args.output, _drawn(source, detectors))
    _report(detectors, time.perf_counter() - start, output, as_json=args.json)


def _load(file: str, args: argparse.Namespace, legend: Legend) -> _Detector:
    net, spec = read_detector(file, args.device, min_size=args.min_size, max_size=args.max_size)
    if spec.classes:
        legend = replace(legend, names=dict(enumerate(spec.classes)))
    elif args.annotations:
        logger.warning("%s: does not name its classes; labels are taken for the ids of %s", file, args.annotations)
    return _Detector(net, args.device, args.score_thresh, legend)


def _warm_up(detectors: dict[str, _Detector], source: Images | Video) -> None:
    """Run each detector once, uncounted: the first run allocates memory and chooses algorithms."""
    first = next(iter(source), None)
    if first is None:
        raise DataError("the video has no frame")
    for detector in detectors.values():
        detect(detector.net, TF.to_dtype(first, scale=True).to(detector.device))


def _drawn(source: Images | Video, detectors: dict[str, _Detector]) -> Iterator[Tensor]:
    """Yield each image with the detections of each detector drawn in it, (3, H, W), uint8."""
    for image in tqdm(source, desc="images", disable=None, leave=False):
        found = {file: one.detect(image) for file, one in detectors.items()}
        legends = {file: one.legend for file, one in detectors.items()}
        if len(found) > 1:
            yield draw_beside(image, found, legends, zooms=_ZOOMS)
        else:
            yield from (draw_detections(image, found[file], legends[file]) for file in found)


def _report(detectors: dict[str, _Detector], total: float, output: Path, *, as_json: bool) -> None:
    """Print the speeds; ``total`` are the seconds of everything."""
    seconds = {file: detector.watch.seconds for file, detector in detectors.items()}
    images = next(iter(detectors.values())).watch.count
    if as_json:
        speeds = {file: images / value for file, value in seconds.items()}
        print(json.dumps({"pictures": images, "fps": speeds, "fps_whole": images / total, "output": str(output)}))
        return
    timed = {**seconds, "total: reading, detecting, drawing, writing": total}
    rows = [(name, f"{1e3 * value / images:.1f}", f"{images / value:.2f}") for name, value in timed.items()]
    print(f"{output}: {images} images\n\n{table(('detector', 'ms per image', 'images per second'), rows)}")
