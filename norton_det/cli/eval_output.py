"""Metrics and comparisons of ``norton-det eval-det``: what is printed and written, in which format."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from norton_det.cli.options import Group, check_output
from norton_det.errors import printable
from norton_det.evaluation.compare import Comparison, format_comparison
from norton_det.evaluation.summary import CLASSES, Metrics, format_metrics
from norton_det.evaluation.tables import (
    analysis_tables,
    comparison_csv,
    comparison_markdown,
    metrics_csv,
    metrics_table,
)
from norton_det.files import write_text

FORMATS = {"text": "", "json": ".json", "csv": ".csv", "markdown": ".md"}
"""Names of ``--format``, and the suffixes of files of each format."""
Texts = Mapping[str, Callable[[], str]]


def add_formats(group: Group) -> None:
    """Add ``--format``, ``--json`` and ``--output``."""
    add = group.add_argument
    text = "of what is printed; json: null is no ground truth"
    add("--format", default="text", choices=[*FORMATS], metavar="NAME", help=text)
    add("--json", action="store_const", dest="format", const="json", help="the same as --format json")
    add("--output", metavar="FILE", help="write metrics or comparison there as well: .json, .csv or .md")


def check_formats(args: argparse.Namespace) -> None:
    """Check that ``--output`` can be written.

    Raises:
        UsageError: it cannot.
    """
    if args.output:
        check_output(args.output, *filter(None, FORMATS.values()))


def show_metrics(args: argparse.Namespace, metrics: Metrics) -> None:
    """Print metrics and write ``--output``."""
    texts = {
        "text": partial(_text, metrics),
        "json": partial(json.dumps, metrics),
        "csv": partial(metrics_csv, metrics),
        "markdown": partial(metrics_table, metrics, "markdown"),
    }
    _show(args, texts)


def show_comparison(args: argparse.Namespace, comparison: Comparison) -> None:
    """Print a comparison and write ``--output``."""
    content: dict[str, Any] = asdict(comparison)
    texts = {
        "text": partial(format_comparison, comparison, per_class=args.per_class),
        "json": partial(json.dumps, content),
        "csv": partial(comparison_csv, comparison),
        "markdown": partial(comparison_markdown, comparison),
    }
    _show(args, texts)


def _text(metrics: Metrics) -> str:
    """Return a line for each metric, or a table where classes have their own."""
    if any(CLASSES in values for values in metrics.values()):
        return metrics_table(metrics)
    return "\n\n".join([format_metrics(metrics), *analysis_tables(metrics)])


def _show(args: argparse.Namespace, texts: Texts) -> None:
    if args.output:
        suffixes = {suffix: name for name, suffix in FORMATS.items()}
        write_text(args.output, texts[suffixes[Path(args.output).suffix]]().rstrip() + "\n")
    print(printable(texts[args.format]().rstrip(), keep="\n"))
