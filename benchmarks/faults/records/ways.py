"""What reads the data of a case: trainings, evaluations, checks and drawings, as their commands do it."""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import NamedTuple

import torch

from benchmarks.faults.records.data import TINY, Case, Row, Sound, expect_right, rows_of
from norton_det.cli import train_det
from norton_det.cli.common import command
from norton_det.cli.config_defaults import parse_arguments
from norton_det.cli.main import main, parser_of
from norton_det.data import Batching, CocoDataset
from norton_det.data.coco.sampler import evaluation_batches, training_batches
from norton_det.data.coco.truth import Truth
from norton_det.evaluation.coco import CocoEvaluator, Metrics
from norton_det.evaluation.coco_results import to_results
from norton_det.visualization.draw import draw_detections
from norton_det.visualization.legend import Legend
from norton_det.visualization.media import open_images

READERS = 4
"""Processes that read images, of each training."""
STREAMS = "streams.txt"
"""Where a process of its own writes."""


class Found(NamedTuple):
    """What a way read: rows and pixels by the names of the images, of a data set for training or not."""

    train: bool
    masks: bool
    rows: dict[str, list[Row]]
    pixels: dict[str, bytes]


class Ended(NamedTuple):
    """How a way ended: exit code, what was written to stderr and logged, what was read, what else is wrong."""

    code: int
    errors: str
    log: str
    found: list[Found]
    wrong: str = ""


class _Log(logging.Handler):
    """Keeps what is logged, and fails as a file does at what is no text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.append(record.getMessage().encode().decode())
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def _streams() -> Iterator[tuple[io.TextIOWrapper, _Log]]:
    """Catch what is written to stdout and stderr, which take what those of a process take, and what is logged."""
    out, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8", kind) for kind in ("strict", "backslashreplace"))
    log, logger = _Log(), logging.getLogger("norton_det")
    logger.addHandler(log)
    logger.propagate = False
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield errors, log
    finally:
        logger.removeHandler(log)


def _ended(run: Callable[[], int], found: list[Found]) -> Ended:
    with _streams() as (errors, log):
        code = run()
        sys.stdout.flush()
        errors.flush()
    return Ended(code, errors.buffer.getvalue().decode(), "\n".join(log.lines), found)  # type: ignore[attr-defined]


def train(case: Case, sound: Sound) -> Ended:
    """Read, augment and evaluate as a training with ``-j 4`` does, without the detector."""
    found: list[Found] = []
    return _ended(lambda: command(lambda words: _train(case, found))([]), found)


def _train(case: Case, found: list[Found]) -> None:
    random = case.random
    model = "keypoint" if case.points else random.choice(["faster", "mask", "mask"])
    presets = ["hflip"] if case.points else ["hflip", "hflip", "ssdlite", "ssd", "multiscale"]
    words = f"--data-path {case.root} --model {model}rcnn_resnet50_fpn --dataset {case.dataset} --device cpu"
    args = parse_arguments(
        parser_of("train-det"), [*words.split(), "--data-augmentation", random.choice(presets), "-j", str(READERS)]
    )
    train_det._check(args)
    train_images, val_images = train_det._images(args)
    kinds = {"keypoint": ("bbox", "keypoints"), "mask": ("bbox", "segm"), "faster": ("bbox",)}[model]
    evaluator = CocoEvaluator(val_images.coco, kinds, name=val_images.annotations)
    batching = Batching(2)
    transform, train_images.transform = train_images.transform, None
    found.append(Found(True, train_images.masks, *rows_of(train_images, case.renamed)))
    train_images.transform = transform
    for _, targets in training_batches(train_images, batching, 0, workers=args.workers):
        for target in targets:
            labels, boxes = target["labels"], target["boxes"]
            expect_right(((labels > 0) & (labels < train_images.num_classes)).all(), f"labels {labels}")
            expect_right((boxes[:, 2:] > boxes[:, :2]).all() and boxes.isfinite().all(), f"boxes {boxes}")
    results = []
    for images, targets in evaluation_batches(val_images, batching, workers=args.workers):
        results += to_results(
            targets[0]["image_id"], _detections(images[0], kinds, val_images), labels=val_images.labels
        )
    _check_metrics(evaluator.evaluate(results))
    found.append(Found(False, False, *rows_of(val_images, case.renamed)))


def _detections(image: torch.Tensor, kinds: tuple[str, ...], data: CocoDataset) -> dict[str, torch.Tensor]:
    count, (height, width) = 4, image.shape[-2:]
    corners = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    found = {
        "boxes": torch.cat([corners, corners + 1 + torch.rand(count, 2) * 20], 1),
        "labels": torch.randint(1, data.num_classes, (count,)),
        "scores": torch.rand(count),
    }
    if "segm" in kinds:
        found["masks"] = torch.rand(count, 1, height, width)
    if "keypoints" in kinds:
        found["keypoints"] = torch.rand(count, len(data.keypoint_names), 3) * width
    return found


def _check_metrics(metrics: Metrics) -> None:
    values = [value for lines in metrics.values() for value in lines.values()]
    right = all(value is None or 0 <= value <= 1 for value in values if not isinstance(value, dict))
    expect_right(right, f"metrics {metrics}")


def _command(case: Case, words: str, *more: str) -> Ended:
    return _ended(lambda: main([*words.split(), *more]), [])


def results(case: Case, sound: Sound) -> Ended:
    """Evaluate results with ``norton-det eval-det``."""
    random = case.random
    kinds = random.choice([["bbox"], ["segm"], *([["keypoints"], []] if case.points else [["bbox", "segm"]])])
    options = random.choice(["", "", "--per-class", "--limit 2", "--errors --kinds bbox", "--f1", "--backend hotcoco"])
    if kinds and "--kinds" not in options:
        options += f" --kinds {' '.join(kinds)}"
    files = f"--results {case.results} --annotations {case.annotations} --dataset {case.dataset}"
    return _command(case, f"eval-det {files} {options}")


def compare(case: Case, sound: Sound) -> Ended:
    """Compare results with ``norton-det eval-det --compare``."""
    files = [str(case.results), str(sound.root / "results.json")]
    case.random.shuffle(files)
    return _command(
        case, f"eval-det --compare {' '.join(files)} --annotations {case.annotations} --kinds bbox segm --draws 40"
    )


def check(case: Case, sound: Sound) -> Ended:
    """Check the data with ``norton-det check-data``; what it finds sound is read in a training."""
    masks = "" if case.random.random() < 0.3 else "--masks"
    words = f"check-data --data-path {case.root} --dataset {case.dataset} {masks}"
    words += case.random.choice(["", "", " --json", f" --results {case.results}" if case.split == "val" else ""])
    ended = _command(case, words)
    if ended.code:
        return ended
    read = lambda words: ended.found.append(_read(case, masks=bool(masks)))  # noqa: E731
    again = _ended(lambda: command(read)([]), ended.found)
    wrong = "check-data found nothing that training refuses" if again.code else ""
    return again._replace(wrong=wrong, log=ended.log + again.log)


def _read(case: Case, *, masks: bool) -> Found:
    train = case.split == "train"
    data = CocoDataset(case.root, case.split, case.dataset, train=train, masks=masks)
    return Found(train, masks, *rows_of(data, case.renamed))


def draw(case: Case, sound: Sound) -> Ended:
    """Draw the truth, as ``norton-det visualize --truth`` does."""

    def run(words: object) -> None:
        truth = Truth(case.annotations)
        legend = replace(Legend.read(case.annotations), names=truth.names_of_labels)
        source = open_images([case.images], case.annotations)
        files = [path.name for path in source.paths]  # type: ignore[union-attr]
        truth.ids_of(files)
        for image, file in zip(source, files, strict=True):
            draw_detections(
                image,
                truth.objects(file, ("bbox", "segm", "keypoints"), (image.shape[2], image.shape[1])),
                legend,
                side=64,
            )

    return _ended(lambda: command(run)([]), [])


def detect(case: Case, sound: Sound) -> Ended:
    """Evaluate a detector with ``norton-det eval-det``."""
    words = f"eval-det --checkpoint {sound.detector} --data-path {case.root} --device cpu -j {READERS}"
    return _command(case, words)


def visualize(case: Case, sound: Sound) -> Ended:
    """Draw detections and truth with ``norton-det visualize``."""
    words = f"visualize --checkpoint {sound.detector} --truth --device cpu --annotations {case.annotations}"
    return _command(case, f"{words} --input {case.images} --output {case.root / 'drawn'} --side 64")


def train_command(case: Case, sound: Sound) -> Ended:
    """Train with ``norton-det train-det -j 4``; it writes to the streams of its process."""
    model = "keypoint" if case.points else case.random.choice(["faster", "mask"])
    words = (
        f"train-det --data-path {case.root} --model {model}rcnn_resnet50_fpn --dataset {case.dataset} -j {READERS} "
        f"--no-plots --epochs 1 --momentum 0 --device cpu --output-dir {case.root / 'out'} --model-kwargs"
    )
    code = main([*words.split(), json.dumps(TINY)])
    sys.stderr.flush()
    text = (case.root.parent / STREAMS).read_text(errors="replace")
    return Ended(code, text, text, [])


Way = Callable[[Case, Sound], Ended]
_OFTEN: list[Way] = [train, results, check, train, draw, train, results, compare, train, check]
WAYS: tuple[Way, ...] = (*_OFTEN * 19, *_OFTEN[:3], *[train] * 4, detect, visualize, train_command)
"""The way of each case, over and over; those that take long come last."""
APART = (train, detect, visualize, train_command)
"""The ways that start processes or threads: each case has a process of its own."""


def seeded(random: Random) -> None:
    """Seed what is random in the ways."""
    torch.manual_seed(random.randrange(2**31))
