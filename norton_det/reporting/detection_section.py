"""The sections of a report's page about what a detector finds, and their pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from norton_det.evaluation.precision_recall import OperatingPoint
from norton_det.reporting import page
from norton_det.reporting.analysis import Analysis
from norton_det.reporting.detection_figures import (
    confusion_figure,
    errors_figure,
    precision_recall_figure,
    sizes_figure,
)
from norton_det.reporting.plots import as_svg, width_of, write_figure
from norton_det.reporting.sections import NONE
from norton_det.reporting.sheets import Sheet, make_sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONFUSIONS = 10
"""Pairs of classes in the table of confusions."""


def detection_section(
    folder: Path, coco: Any, images: Path | None, analyses: Mapping[str, Mapping[str, Analysis]], count: int
) -> list[str]:
    """Write the pictures of a detector into its folder and return its sections.

    Args:
        folder: folder of the run.
        coco: ``pycocotools.coco.COCO`` of the annotations.
        images: folder of the validation images; None: they are not drawn.
        analyses: the analyses by kind and name; the first name is the run's.
        count: number of images on a sheet.
    """
    kinds = list(analyses)
    main = [*analyses[kinds[-1]].values()]
    regions = main if main[0].errors is not None else [*analyses["bbox"].values()]
    parts = [page.heading(f"What is found ({kinds[-1]})", 3)]
    for name, make, sides, text in _FIGURES:
        figure = make(regions if sides == "regions" else main)
        write_figure(figure, folder / f"{name}.png")
        tables = {"precision_recall": _threshold_tables(analyses), "confusion_matrix": _confusions(regions[0])}
        parts.append(page.beside([page.drawing(as_svg(figure), width_of(figure), text), *tables.get(name, [])]))
    if images is not None:
        for sheet, file, title, text in zip(
            make_sheets(coco, images, main, count), ("predictions.jpg", "worst.jpg"), *_SHEETS, strict=True
        ):
            parts += _sheet_section(sheet, folder / file, title, text)
    return parts


_FIGURES: tuple[tuple[str, Callable[[Sequence[Analysis]], "Figure"], str, str], ...] = (
    (
        "precision_recall",
        precision_recall_figure,
        "main",
        "Detections are matched with objects of their class at an IoU of 0.5. A dot is the threshold with the best F1; "
        "in brackets the number of objects.",
    ),
    (
        "confusion_matrix",
        confusion_figure,
        "regions",
        "At the threshold with the best F1 of all classes. The row is the class of the object, the column what it is "
        "detected as; the shade is the fraction of the row. Last column: missed. Last row: detections of nothing, or a "
        "second time.",
    ),
    ("sizes", sizes_figure, "main", "Found: by a detection of the right class at the threshold with the best F1."),
    (
        "errors",
        errors_figure,
        "regions",
        "The error split of TIDE (Bolya et al., 2020): how much AP50 would rise if an oracle corrected the errors of "
        "one kind. The gains do not add up to what is missing to 1.",
    ),
)
_SHEETS = (
    ("Validation images", "Worst images"),
    (
        "A sample, spread evenly: what is there, beside what is detected at the threshold with the best F1.",
        "Those with the largest 1 - F1 of the image, the fraction of missed objects and false alarms among all, at the "
        "threshold with the best F1 of the data set.",
    ),
)


def _threshold_tables(analyses: Mapping[str, Mapping[str, Analysis]]) -> list[str]:
    """Return a table for each kind: precision, recall and F1 at the best threshold, overall and of each class."""
    return ["".join(_threshold_table(kind, [*of_kind.values()]) for kind, of_kind in analyses.items())]


def _threshold_table(kind: str, sides: Sequence[Analysis]) -> str:
    rows: list[Sequence[str]] = []
    for side in sides:
        name = f"{side.name}: " if len(sides) > 1 else ""
        rows.append((f"{name}all classes", *_point(side.best)))
        rows += [(f"{name}{label}", *_point(point)) for label, point in side.best_of_classes.items() if point.objects]
    return page.table((f"{kind}, IoU 0.5", "threshold", "precision", "recall", "F1", "objects"), rows)


def _point(point: OperatingPoint) -> tuple[str, ...]:
    values = (point.threshold, point.precision, point.recall, point.f1)
    return (*(NONE if value is None else f"{value:.3f}" for value in values), str(point.objects))


def _confusions(side: Analysis) -> list[str]:
    """Return a table of the classes that are taken for each other most often; nothing if there are none."""
    classes, matrix = side.matches.classes, side.confusion
    pairs = [
        (matrix[i, j], a, b) for i, a in enumerate(classes) for j, b in enumerate(classes) if i != j and matrix[i, j]
    ]
    if not pairs:
        return []
    rows = [(a, b, count) for count, a, b in sorted(pairs, key=lambda pair: -pair[0])[:_CONFUSIONS]]
    return [page.table(("object", "taken for", "times"), rows)]


def _sheet_section(sheet: Sheet, path: Path, title: str, text: str) -> list[str]:
    if not sheet.images:
        return []
    sheet.write(path)
    return [page.heading(title, 3), page.paragraph(text, "note"), page.images(sheet.images, sheet.captions)]
