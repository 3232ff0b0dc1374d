"""The sections of a report's page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from norton_det.evaluation.compare import Comparison, Difference
from norton_det.evaluation.precision_recall import OperatingPoint
from norton_det.formatting import format_count
from norton_det.reporting import page
from norton_det.reporting.analysis import Analysis
from norton_det.reporting.detection_figures import (
    confusion_figure,
    errors_figure,
    precision_recall_figure,
    sizes_figure,
)
from norton_det.reporting.plots import as_svg, write_figure
from norton_det.reporting.run import Run
from norton_det.reporting.sheets import Sheet, make_sheets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONFUSIONS = 10
_NONE = "–"


def headline(run: Run) -> list[tuple[str, str]]:
    """Return the main numbers of a run, each with its name."""
    rows = []
    for name, value in run.metrics.items():
        kind, _, line = name.rpartition("_")
        if not kind:
            rows.append((f"{name} (%)", f"{value:.2f}"))
        elif line in ("AP", "AP50"):
            rows.append((f"{kind} {line}", _NONE if value is None else f"{value:.3f}"))
    for name, text in (("macs", "MACs"), ("params", "parameters")):
        count, dense = run.cost.get(name), run.cost.get(f"dense_{name}")
        if count:
            less = f", {100 * (count / dense - 1):+.0f} % to dense" if dense and dense != count else ""
            rows.append((f"{text}{less}", format_count(count)))
    rows.append((f"training, {len(run.epochs)} epochs", duration(run.seconds)))
    return rows


def duration(seconds: float) -> str:
    """Return a duration as text.

    Example:
        >>> from norton_det.reporting.sections import duration
        >>> duration(42), duration(90), duration(3700)
        ('42 s', '1.5 min', '1.03 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def overview(runs: Sequence[Run], dense: Run | None) -> list[str]:
    """Return the table of several runs, with links to their parts."""
    everything = [*([dense] if dense is not None else []), *runs]
    rows = [dict(headline(run)) for run in everything]
    names = list(dict.fromkeys(name.partition(",")[0] for row in rows for name in row))
    short = [{name.partition(",")[0]: text for name, text in row.items()} for row in rows]
    table = page.table(
        ("run", *names),
        [(run.name, *(row.get(name, _NONE) for name in names)) for run, row in zip(everything, short, strict=True)],
    )
    return [page.links([(run.name, f"run{i}") for i, run in enumerate(runs)]), table]


def facts_section(run: Run) -> list[str]:
    """Return what ``args.yaml`` says of a run; nothing for a run of an earlier version."""
    about = run.about
    if not about:
        return []
    rows: list[tuple[str, object]] = [("folder", run.folder)]
    command = about.get("command")
    rows += [("command", " ".join(map(str, command)) if isinstance(command, list) else command)] if command else []
    for split, data in (about.get("data") or {}).items():
        if data:
            objects = f", {data['objects']} objects" if data.get("objects") is not None else ""
            rows.append((f"{split} data", f"{data.get('images')} images{objects}: {data.get('annotations') or data.get('folder')}"))
    classes = [str(name) for name in about.get("classes") or () if name != "__background__"]
    rows += [(f"{len(classes)} classes", ", ".join(classes))] if classes else []
    versions = ", ".join(f"{name} {text}" for name, text in (about.get("versions") or {}).items())
    for name, text in (("device", about.get("device")), ("versions", versions), ("commit", about.get("git_commit"))):
        rows += [(name, text)] if text else []
    rows += [("started", about["started"])] if about.get("started") else []
    arguments = page.facts([(name, value) for name, value in (about.get("args") or {}).items()])
    return [page.heading("Run", 3), page.facts(rows), page.folded("All arguments", arguments)]


def costs_of(dense: Run, run: Run) -> list[tuple[str, str, str, str]]:
    """Return rows of what two networks cost: name, dense, compressed, and the change in percent."""
    rows = []
    counted = [("MACs", "macs", format_count), ("parameters", "params", format_count)]
    for text, name, show in counted:
        a, b = dense.cost.get(name), run.cost.get(name)
        if a and b:
            rows.append((text, show(a), show(b), f"{100 * (b / a - 1):+.1f} %"))
    a, b = (one.seconds / max(1, len(one.epochs)) for one in (dense, run))
    if a and b:
        rows.append(("training time of an epoch", duration(a), duration(b), f"{100 * (b / a - 1):+.1f} %"))
    return rows


def comparison_section(comparison: Comparison, costs: Sequence[Sequence[str]]) -> list[str]:
    """Return the comparison with the dense detector: costs, and metrics with their intervals."""
    header = ("", *comparison.names, "difference", f"{100 * comparison.level:.0f} % interval")
    rows: list[Sequence[str]] = [(*row, "") for row in costs]
    for kind, metrics in comparison.metrics.items():
        rows += [(f"{kind} {name}", *_cells(difference)) for name, difference in metrics.items()]
    classes = [
        (f"{kind} AP of {name}", *_cells(lines["AP"]))
        for kind, of_kind in comparison.classes.items()
        for name, lines in of_kind.items()
    ]
    note = (
        f"Both detectors on the same {comparison.images} images. The interval is that of a paired bootstrap over the images "
        f"({comparison.draws} draws): one that contains 0 says that the images do not tell the detectors apart."
    )
    return [
        page.heading("Beside the dense network", 3),
        page.table(header, rows),
        page.folded("AP of each class", page.table(header, classes)),
        page.paragraph(note, "note"),
    ]


def _cells(difference: Difference) -> tuple[str, str, str, str]:
    if difference.a is None or difference.b is None or difference.difference is None:
        return _NONE, _NONE, _NONE, "no ground truth"
    low_high = difference.interval
    interval = _NONE if low_high is None else f"{low_high[0]:+.3f} to {low_high[1]:+.3f}"
    return f"{difference.a:.3f}", f"{difference.b:.3f}", f"{difference.difference:+.3f}", interval


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
        parts.append(page.drawing(as_svg(figure), text))
        if name == "precision_recall":
            parts += [thresholds_table(kind, [*of_kind.values()]) for kind, of_kind in analyses.items()]
        if name == "confusion_matrix":
            parts += _confusions(regions[0])
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
        "Detections are matched with objects of their class at an IoU of 0.5. A dot is the threshold with the best F1; in "
        "brackets the number of objects.",
    ),
    (
        "confusion_matrix",
        confusion_figure,
        "regions",
        "At the threshold with the best F1 of all classes. The row is the class of the object, the column what it is detected "
        "as; the shade is the fraction of the row. Last column: missed. Last row: detections of nothing, or a second time.",
    ),
    ("sizes", sizes_figure, "main", "Found: by a detection of the right class at the threshold with the best F1."),
    (
        "errors",
        errors_figure,
        "regions",
        "The error split of TIDE (Bolya et al., 2020): how much AP50 would rise if an oracle corrected the errors of one kind. "
        "The gains do not add up to what is missing to 1.",
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


def thresholds_table(kind: str, sides: Sequence[Analysis]) -> str:
    """Return the table of precision, recall and F1 at the best threshold, overall and of each class."""
    rows: list[Sequence[str]] = []
    for side in sides:
        name = f"{side.name}: " if len(sides) > 1 else ""
        rows.append((f"{name}all classes", *_point(side.best)))
        rows += [(f"{name}{label}", *_point(point)) for label, point in side.best_of_classes.items() if point.objects]
    return page.table((f"{kind}, IoU 0.5", "threshold", "precision", "recall", "F1", "objects"), rows)


def _point(point: OperatingPoint) -> tuple[str, ...]:
    values = (point.threshold, point.precision, point.recall, point.f1)
    return (*(_NONE if value is None else f"{value:.3f}" for value in values), str(point.objects))


def _confusions(side: Analysis) -> list[str]:
    """Return a table of the classes that are taken for each other most often; nothing if there are none."""
    classes, matrix = side.matches.classes, side.confusion
    pairs = [(matrix[i, j], a, b) for i, a in enumerate(classes) for j, b in enumerate(classes) if i != j and matrix[i, j]]
    if not pairs:
        return []
    rows = [(a, b, count) for count, a, b in sorted(pairs, key=lambda pair: -pair[0])[:_CONFUSIONS]]
    return [page.table(("object", "taken for", "times"), rows)]


def _sheet_section(sheet: Sheet, path: Path, title: str, text: str) -> list[str]:
    if not sheet.images:
        return []
    sheet.write(path)
    return [page.heading(title, 3), page.paragraph(text, "note"), page.images(sheet.images, sheet.captions)]
