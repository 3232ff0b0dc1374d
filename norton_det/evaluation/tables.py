"""Metrics and comparisons as tables: for a terminal, as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from norton_det.evaluation.compare import Comparison, Difference
from norton_det.evaluation.error_split import KINDS
from norton_det.evaluation.summary import CLASSES, Metrics, metric_names
from norton_det.formatting import table

ERRORS, F1 = "errors", "f1"
"""Keys of the error split and of the best thresholds, beside the names of the metrics."""
Style = Literal["text", "markdown"]
_POINT = ("threshold", "precision", "recall", "f1", "objects")


def metrics_table(metrics: Metrics, style: Style = "text") -> str:
    """Return the metrics of each kind as a table: a row for all classes, and one for each class that has its own.

    Tables of the error split and of the best thresholds follow where the metrics contain them.

    Args:
        metrics: the metrics by kind.
        style: "text", for a terminal, or "markdown".

    Example:
        >>> from norton_det.evaluation.tables import metrics_table
        >>> print(metrics_table({"bbox": {"AP": 0.5, "AP50": None}}))
        IoU metric: bbox (-: no ground truth)
        class       AP    AP50
        -------  -----  ------
        all      0.500       -
    """
    parts = []
    for kind, values in metrics.items():
        names = metric_names(values)
        rows = {"all": values, **values.get(CLASSES, {})}
        cells = [(name, *(_number(row[line]) for line in names)) for name, row in rows.items()]
        parts.append(f"IoU metric: {kind} (-: no ground truth){_gap(style)}{table(('class', *names), cells, style)}")
    return "\n\n".join([*parts, *analysis_tables(metrics, style)])


def analysis_tables(metrics: Metrics, style: Style = "text") -> list[str]:
    """Return the tables of the error split and of the best thresholds, of each kind that has them."""
    parts = []
    for kind, values in metrics.items():
        if errors := values.get(ERRORS):
            cells = [(name, errors["counts"][name], _number(errors["dAP"][name])) for name in KINDS]
            title = f"{kind}: errors, and what each kind costs in AP50 ({_number(errors['AP50'])})"
            parts.append(f"{title}{_gap(style)}{table(('error', 'number', 'dAP'), cells, style)}")
        if points := values.get(F1):
            rows = {"all": points["all"], **points[CLASSES]}
            points_of = [(name, *map(_number, map(row.get, _POINT[:-1])), row["objects"]) for name, row in rows.items()]
            title = f"{kind}: precision, recall and F1 at the score threshold with the best F1, IoU 0.5"
            parts.append(f"{title}{_gap(style)}{table(('class', *_POINT), points_of, style)}")
    return parts


def _gap(style: Style) -> str:
    return "\n" if style == "text" else "\n\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison as Markdown: a table for each kind, with the AP of each class.

    Example:
        >>> from norton_det.evaluation.compare import Comparison, Difference
        >>> from norton_det.evaluation.tables import comparison_markdown
        >>> metrics = {"bbox": {"AP": Difference(0.5, 0.45, -0.05, (-0.0625, -0.03125), 1000)}}
        >>> compared = Comparison(("a.json", "b.json"), 72, 1000, 0, None, metrics, {"bbox": {}}, {})
        >>> print(comparison_markdown(compared).splitlines()[-1])
        | AP     | 0.500 | 0.450 | -0.050  | -0.062 to -0.031 |
    """
    a, b = comparison.names
    parts = [f"A: `{a}`, B: `{b}`; {comparison.images} images, {comparison.draws} draws, seed {comparison.seed}"]
    for kind, metrics in comparison.metrics.items():
        classes = {f"AP of {name}": lines["AP"] for name, lines in comparison.classes[kind].items()}
        rows = [(name, *_cells(difference)) for name, difference in {**metrics, **classes}.items()]
        header = (kind, "A", "B", "B - A", f"{100 * comparison.level:.0f} % interval")
        parts.append(table(header, rows, "markdown"))
    return "\n\n".join(parts)


def _cells(difference: Difference) -> tuple[str, str, str, str]:
    change = "-" if difference.difference is None else f"{difference.difference:+.3f}"
    interval = "-" if difference.interval is None else "{:+.3f} to {:+.3f}".format(*difference.interval)
    return _number(difference.a), _number(difference.b), change, interval


def metrics_csv(metrics: Metrics) -> str:
    """Return the metrics as CSV: kind, class, metric and value; a value without ground truth is empty.

    Example:
        >>> from norton_det.evaluation.tables import metrics_csv
        >>> print(metrics_csv({"bbox": {"AP": 0.5, "classes": {"cat": {"AP": None}}}}), end="")
        kind,class,metric,value
        bbox,,AP,0.5
        bbox,cat,AP,
    """
    return _csv(("kind", "class", "metric", "value"), _rows(metrics))


def _rows(metrics: Metrics) -> Iterator[Sequence[Any]]:
    for kind, values in metrics.items():
        for name, row in {"": values, **values.get(CLASSES, {})}.items():
            yield from ((kind, name, line, row[line]) for line in metric_names(row))
        if errors := values.get(ERRORS):
            yield from ((kind, "", f"dAP {name}", errors["dAP"][name]) for name in KINDS)
            yield from ((kind, "", f"errors {name}", errors["counts"][name]) for name in KINDS)
        if points := values.get(F1):
            for name, point in {"": points["all"], **points[CLASSES]}.items():
                yield from ((kind, name, f"best {field}", point[field]) for field in _POINT)


def comparison_csv(comparison: Comparison) -> str:
    """Return a comparison as CSV: kind, class, metric, A, B, their difference, and the interval with its draws."""
    rows = [
        (kind, name, line, d.a, d.b, d.difference, *(d.interval or (None, None)), d.draws)
        for kind, metrics in comparison.metrics.items()
        for name, lines in _with_classes(metrics, comparison.classes[kind])
        for line, d in lines.items()
    ]
    return _csv(("kind", "class", "metric", "a", "b", "difference", "low", "high", "draws"), rows)


def _with_classes(
    metrics: Mapping[str, Difference], classes: Mapping[str, Mapping[str, Difference]]
) -> list[tuple[str, Mapping[str, Difference]]]:
    return [("", metrics), *classes.items()]


def _csv(header: Sequence[str], rows: Any) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)  # None is an empty cell
    return buffer.getvalue()
