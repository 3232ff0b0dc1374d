r"""Draw detections on images or a video, of two detectors side by side if wanted, and measure their speeds.

Beside the drawings, detections.json has the detections as COCO results with names of classes and files; those of
--compare are in detections_compare.json. With --annotations, ids of images and categories are those of the data.

The detector's time is that of an image on its way from memory to boxes, masks and keypoints in memory, one image at a
time. The total time is everything: reading, all detectors, drawing and writing.

Of a classifier, --cam draws where the image speaks for the class that it sees.

Examples:
  norton-det visualize --checkpoint dense.pth --compare compressed.pth --input street.mp4 --output drawn \
      --annotations coco/annotations/instances_val2017.json
  norton-det visualize --checkpoint out/checkpoint.pth --input coco/val2017 --output drawn \
      --annotations coco/annotations/instances_val2017.json --truth
"""

import argparse
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from norton_det.checkpoint import read_spec
from norton_det.cli.class_maps import draw_classes
from norton_det.cli.common import Parser
from norton_det.cli.data_options import FOLDER, add_dataset, add_division, division_of
from norton_det.cli.drawn_detector import DrawnDetector
from norton_det.cli.numbers import DRAWN, FRACTION, whole
from norton_det.cli.options import add_device, add_image_size
from norton_det.data import find_split
from norton_det.data.coco.dataset import annotated_images
from norton_det.data.coco.truth import Truth
from norton_det.errors import DataError, UsageError, printable
from norton_det.files import write_json
from norton_det.formatting import table
from norton_det.inference.load import open_detector
from norton_det.models import ARCHITECTURES
from norton_det.models.tasks import Detection
from norton_det.runtime.device import check_device
from norton_det.visualization.beside import draw_beside, with_row
from norton_det.visualization.cam import check_cam, with_map
from norton_det.visualization.draw import draw_detections, enlarged
from norton_det.visualization.legend import Legend
from norton_det.visualization.media import Images, Video, open_images

logger = logging.getLogger(__name__)
_TRUTH = "truth"


def add_arguments(parser: Parser) -> None:
    """Add the arguments."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="training checkpoint, or file of norton-det compress")
    add("--compare", metavar="FILE", help="another one, drawn beside it")
    add("--titles", nargs="+", metavar="TEXT", help="of the two (default: the names of the files)")
    add_image_size(group)
    add("--score-thresh", default=0.5, type=FRACTION, metavar="P", help="minimum score of what is drawn")
    add_device(group)
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--input", nargs="+", metavar="PATH", help="images, folders of images, or one video")
    add("--data-path", metavar="DIR", help=f"validation images and annotations in place of --input: {FOLDER}")
    add_dataset(group)
    add_division(group)
    add(
        "--annotations",
        metavar="FILE",
        help="COCO annotations: skeleton, orientation of the images, ids, names of classes that a file does not name",
    )
    add("--truth", action="store_true", help="draw the objects of --annotations first, beside those detected")
    add = parser.add_argument_group("output").add_argument
    add("--output", required=True, metavar="DIR", help="folder for the images, or for the video as MP4; and for JSON")
    add(
        "--side",
        type=whole(1, DRAWN),
        metavar="S",
        help="longer side of an image as drawn (default: its own, small ones enlarged)",
    )
    add(
        "--zoom",
        default=3,
        type=whole(0, 100),
        metavar="N",
        help="parts that are enlarged where those beside each other differ",
    )
    add("--cam", action="store_true", help="draw class activation maps as well; needs norton-det[cam]")
    add("--json", action="store_true", help="print the speeds as JSON")


def run(args: argparse.Namespace) -> None:
    """Draw and print the speeds."""
    files = [file for file in (args.checkpoint, args.compare) if file is not None]
    titles = args.titles or files
    if args.compare is not None and Path(args.compare) == Path(args.checkpoint):
        raise UsageError(f"--compare {args.compare}: is --checkpoint; expected another file")
    if len(titles) != len(files) or len({*titles, _TRUTH}) <= len(files):
        raise UsageError(f"--titles {' '.join(titles)}: expected a title of its own for each of {' and '.join(files)}")
    if args.truth and not (args.annotations or args.data_path):
        raise UsageError("--truth needs --annotations")
    if args.cam:
        check_cam()
    check_device(args.device)
    set_input(args)
    source = open_images(args.input, args.annotations)
    if args.cam and ARCHITECTURES[read_spec(args.checkpoint, deployed=True).arch].task.name != Detection.name:
        output = draw_classes(source, dict(zip(titles, files, strict=True)), args)
        print(printable(f"{output}: {len(source)} images"))
    else:
        _draw(source, dict(zip(titles, files, strict=True)), args)


def set_input(args: argparse.Namespace) -> None:
    """Set ``input`` and ``annotations`` to those of ``--data-path``, if it is given.

    Raises:
        UsageError: neither or both of ``--input`` and ``--data-path`` are given.
        DataError: as of :func:`norton_det.data.find_split`.
    """
    if (args.input is None) == (args.data_path is None):
        raise UsageError("--input and --data-path: expected one of the two")
    if args.data_path is not None:
        found = find_split(args.data_path, "val", args.dataset, annotations=args.annotations, **division_of(args))
        args.input, args.annotations = annotated_images(found), found.annotations


def _draw(source: Images | Video, files: dict[str, str], args: argparse.Namespace) -> None:
    """Draw what detectors find, write it as JSON as well, and print the speeds."""
    truth = Truth(args.annotations) if args.annotations else None
    legend = Legend.read(args.annotations) if args.annotations else Legend()
    detectors = [_load(title, file, args, legend, truth) for title, file in files.items()]
    _warm_up(detectors, source)
    start = time.perf_counter()
    output = source.write(args.output, _drawn(source, detectors, truth, legend, args))
    for detector, suffix in zip(detectors, ("", "_compare"), strict=False):
        write_json(Path(args.output) / f"detections{suffix}.json", detector.rows)
        detector.log_left_out(args.annotations)
    _report(detectors, time.perf_counter() - start, output, as_json=args.json)


def _load(title: str, file: str, args: argparse.Namespace, legend: Legend, truth: Truth | None) -> DrawnDetector:
    net, spec = open_detector(file, args.device, min_size=args.min_size, max_size=args.max_size)
    named = Legend.of_names(spec.classes, spec.keypoints)
    ids = None
    if spec.classes and truth is not None:
        number = {name: i for i, name in truth.names.items()}
        ids = {label: number[name] for label, name in named.names.items() if name in number}
    elif truth is not None:
        logger.warning("%s: does not name its classes; labels are taken for the ids of %s", file, args.annotations)
    legend = Legend(
        named.names if spec.classes else legend.names,
        legend.skeleton or named.skeleton,
        spec.keypoints or legend.keypoints,
    )
    return DrawnDetector(title, net, args.device, args.score_thresh, legend, ARCHITECTURES[spec.arch].task.kinds, ids)


def _warm_up(detectors: Sequence[DrawnDetector], source: Images | Video) -> None:
    """Run each detector once, uncounted: the first run allocates memory and chooses algorithms."""
    first = next(iter(source), None)
    if first is None:
        raise DataError("the video has no frame")
    file = str(source.path if isinstance(source, Video) else source.paths[0])
    for detector in detectors:
        detector.run(first, file)


def _drawn(
    source: Images | Video,
    detectors: Sequence[DrawnDetector],
    annotated: Truth | None,
    legend: Legend,
    args: argparse.Namespace,
) -> Iterator[Tensor]:
    """Yield each image with the detections of each detector drawn in it, (3, H, W), uint8."""
    truth = annotated if args.truth else None
    files, ids = _files_and_ids(source, annotated)
    bar = tqdm(source, desc="images", disable=None, leave=False)
    for number, (image, file) in enumerate(zip(bar, files, strict=False), start=1):
        image_id = number if ids is None else ids[number - 1]
        found = {one.title: one.found(image, file, image_id).detections for one in detectors}
        maps = [enlarged(with_map(image, one.map(image)), args.side) for one in detectors] if args.cam else []
        legends = {one.title: one.legend for one in detectors}
        if truth is not None:
            found = {_TRUTH: truth.objects(file, detectors[0].kinds, (image.shape[2], image.shape[1])), **found}
            legends[_TRUTH] = replace(legend, names=truth.names_of_labels)
            maps = maps and [enlarged(image, args.side), *maps]
        if len(found) > 1 or maps:
            drawn = draw_beside(image, found, legends, side=args.side, zooms=args.zoom if len(found) > 1 else 0)
        else:
            (one,) = detectors
            drawn = draw_detections(image, found[one.title], one.legend, side=args.side)
        yield with_row(drawn, maps) if maps else drawn


def _files_and_ids(source: Images | Video, annotated: Truth | None) -> tuple[Iterable[str], list[Any] | None]:
    """Return the name of the file of each image, and the ids of all images, if the annotations have them."""
    if isinstance(source, Video):
        return repeat(source.path.name), None
    files = [path.name for path in source.paths]
    return files, None if annotated is None else annotated.ids_of(files)


def _report(detectors: Sequence[DrawnDetector], total: float, output: Path, *, as_json: bool) -> None:
    """Print the speeds; ``total`` are the seconds of everything."""
    seconds = {detector.title: detector.watch.seconds for detector in detectors}
    images = detectors[0].watch.count
    if as_json:
        speeds = {title: images / value for title, value in seconds.items()}
        print(json.dumps({"pictures": images, "fps": speeds, "fps_whole": images / total, "output": str(output)}))
        return
    timed = {**seconds, "total: reading, detecting, drawing, writing": total}
    rows = [(name, f"{1e3 * value / images:.1f}", f"{images / value:.2f}") for name, value in timed.items()]
    print(
        f"{printable(str(output))}: {images} images\n\n{table(('detector', 'ms per image', 'images per second'), rows)}"
    )
