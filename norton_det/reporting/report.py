"""The report of finished trainings: pictures in each run's folder, and one self-contained page, ``report.html``."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from norton_det.data.coco.dataset import read_coco
from norton_det.data.coco.held_out import HeldOut
from norton_det.errors import DataError, UsageError
from norton_det.evaluation.compare import DRAWS, Comparison, compare_results
from norton_det.evaluation.keypoint_sigmas import set_sigmas
from norton_det.files import write_text
from norton_det.reporting import page
from norton_det.reporting.analysis import Analysis, analyse
from norton_det.reporting.curves import curves_figure
from norton_det.reporting.detection_section import detection_section
from norton_det.reporting.plots import as_svg, width_of, write_figure
from norton_det.reporting.run import Run, read_run
from norton_det.reporting.sections import comparison_section, costs_of, facts_section, headline, overview
from norton_det.reporting.sheets import unreadable_images
from norton_det.storage import is_folder, is_there

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
IMAGES = 8
"""Number of images on a sheet."""


def write_report(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    compare: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    count: int = IMAGES,
    draws: int = DRAWS,
) -> Path:
    """Write the pictures of finished trainings into their folders, and a page with all of it.

    The pictures are ``curves.png``, and of a detector ``precision_recall.png``, ``confusion_matrix.png``,
    ``sizes.png``, ``errors.png``, ``predictions.jpg`` and ``worst.jpg``. Where the validation data are is read from a
    run's ``args.yaml``, if it is not told. What lacks its data is left out, and the page says so.

    Args:
        runs: folders of trainings of detectors or classifiers.
        output: the page; None: ``report.html`` in the first folder.
        compare: folder of the training of the dense detector, which is drawn and compared with each run.
        annotations: validation annotations of all runs; None: those of each run.
        images: folder of the validation images; None: those of each run.
        count: number of images on a sheet.
        draws: number of bootstrap draws of the comparison.

    Returns:
        The path of the page.

    Raises:
        UsageError: no run is given, or the folder of ``output`` does not exist.
        DataError: a folder is not that of a training, or a file or the data have errors.

    Example:
        >>> from pathlib import Path
        >>> from norton_det.reporting.report import write_report
        >>> Path("a_run").mkdir()
        >>> _ = Path("a_run/metrics.jsonl").write_text('{"epoch": 0, "lr": 0.1, "train_loss": 2.5, "top1": 61.0}')
        >>> write_report(["a_run"]).as_posix(), Path("a_run/curves.png").exists()
        ('a_run/report.html', True)
    """
    if not runs:
        raise UsageError("no run is given; expected the folder of a training")
    read = [read_run(folder) for folder in runs]
    dense = None if compare is None else read_run(compare)
    if dense is not None and dense.results is None:
        raise DataError(f"{dense.folder}: lacks detections; expected the folder of a detector's training")
    path = read[0].folder / REPORT_FILE if output is None else Path(output)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: folder {path.parent} does not exist")
    title = f"Report: {', '.join(run.name for run in read)}"
    parts = [page.heading(title, 1), *(overview(read, dense) if len(read) > 1 else [])]
    for number, run in enumerate(read):
        parts += [page.heading(run.name, 2, f"run{number}")] if len(read) > 1 else []
        given = (annotations or run.data("annotations"), images or run.data("folder"))
        parts += _report(run, dense, *given, told=annotations is not None, count=count, draws=draws)
    write_text(path, page.document(title, parts))
    return path


def _report(
    run: Run,
    dense: Run | None,
    annotations: str | Path | None,
    images: str | Path | None,
    *,
    told: bool,
    count: int,
    draws: int,
) -> list[str]:
    """Write a run's pictures and return its part of the page."""
    others = {} if dense is None else {f"{dense.name} (dense)": dense}
    curves = curves_figure(run, others)
    write_figure(curves, run.folder / "curves.png")
    training = [page.heading("Training", 3), page.drawing(as_svg(curves), width_of(curves)), *facts_section(run)]
    model = run.args.get("model")
    start = [*([page.paragraph(str(model), "note")] if model else []), page.tiles(headline(run))]
    if run.results is None:
        return [*start, *training]
    if annotations is None or not (told or is_there(annotations)):
        missing = "their place is not known" if annotations is None else f"{annotations} does not exist"
        text = f"The detections are not analysed, because the validation annotations are missing: {missing}."
        logger.warning("%s: %s --annotations names them.", run.folder, text)
        return [*start, page.paragraph(text, "note"), *training]
    coco = truth_of(run, annotations)
    limit = run.args.get("max_detections")
    sides = {run.name: run, **others}
    analyses = analyse(coco, {name: side.results or [] for name, side in sides.items()}, annotations, limit)
    compared = [] if dense is None else _compare(coco, run, dense, annotations, limit, draws)
    folder = Path(images) if images is not None and is_folder(images) else None
    if folder is None:
        logger.warning("%s: no images are drawn; expected their folder, as --images names it", run.folder)
    missing_images = [] if folder is None else _missing_images(run, coco, folder, analyses, count)
    found = detection_section(run.folder, coco, folder, analyses, count)
    return [*start, *compared, *found, *missing_images, *training]


def _missing_images(
    run: Run, coco: Any, folder: Path, analyses: Mapping[str, Mapping[str, Analysis]], count: int
) -> list[str]:
    """Return a note of the images that are not drawn, because they cannot be read; nothing if all are."""
    main = [*analyses[[*analyses][-1]].values()]
    errors = unreadable_images(coco, folder, main, count)
    for error in errors.values():
        logger.warning("%s: an image is not drawn: %s", run.folder, error)
    text = f"These images are not drawn, because they are missing or cannot be read: {', '.join(errors)}."
    return [page.paragraph(text, "note")] if errors else []


def truth_of(run: Run, annotations: str | Path) -> Any:
    """Return the annotations as the run was evaluated on them: the part that it held out, with its tolerances."""
    fraction, seed = run.args.get("val_fraction"), run.args.get("split_seed", 0)
    coco = read_coco(annotations, None if fraction is None else HeldOut(fraction, seed, held_out=True))
    if run.args.get("keypoint_sigmas"):
        set_sigmas(coco, run.args["keypoint_sigmas"], annotations)
    return coco


def _compare(coco: Any, run: Run, dense: Run, annotations: str | Path, limit: int | None, draws: int) -> list[str]:
    comparison: Comparison = compare_results(
        coco,
        dense.results or [],
        run.results or [],
        names=(f"{dense.name} (dense)", run.name),
        annotations=annotations,
        max_detections=limit,
        draws=draws,
    )
    return comparison_section(comparison, costs_of(dense, run))
