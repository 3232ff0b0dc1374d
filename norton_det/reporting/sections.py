"""The sections of a report's page about a run: main numbers, what it was, the comparison with the dense network."""

import shlex
from collections.abc import Sequence

from norton_det.data.coco.labels import BACKGROUND
from norton_det.evaluation.compare import Comparison, Difference
from norton_det.formatting import format_count
from norton_det.reporting import page
from norton_det.reporting.run import Run
from norton_det.spec import UNUSED

NONE = "-"
"""What is written where there is no number."""


def headline(run: Run) -> list[tuple[str, str]]:
    """Return the main numbers of a run, each with its name."""
    rows = []
    for name, value in run.metrics.items():
        kind, _, line = name.rpartition("_")
        if not kind:
            rows.append((f"{name} (%)", NONE if value is None else f"{value:.2f}"))
        elif line in ("AP", "AP50"):
            rows.append((f"{kind} {line}", NONE if value is None else f"{value:.3f}"))
    for name, text in (("macs", "MACs"), ("params", "parameters")):
        count, dense = run.cost.get(name), run.cost.get(f"dense_{name}")
        if count:
            less = f", {100 * (count / dense - 1):+.0f} % against dense" if dense and dense != count else ""
            rows.append((f"{text}{less}", format_count(count)))
    rows.append((f"training, {len(run.epochs)} epoch{'' if len(run.epochs) == 1 else 's'}", duration(run.seconds)))
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
        [(run.name, *(row.get(name, NONE) for name in names)) for run, row in zip(everything, short, strict=True)],
    )
    return [page.links([(run.name, f"run{i}") for i, run in enumerate(runs)]), table]


def facts_section(run: Run) -> list[str]:
    """Return what ``args.yaml`` says of a run; nothing for a run of an earlier version."""
    about = run.about
    if not about:
        return []
    rows: list[tuple[str, object]] = [("folder", run.folder)]
    command = about.get("command")
    rows += [("command", shlex.join(map(str, command)) if isinstance(command, list) else command)] if command else []
    for split, data in (about.get("data") or {}).items():
        if data:
            objects = f", {data['objects']} objects" if data.get("objects") is not None else ""
            rows.append(
                (
                    f"{split} data",
                    f"{data.get('images')} images{objects}: {data.get('annotations') or data.get('folder')}",
                )
            )
    classes = [str(name) for name in about.get("classes") or () if name not in (BACKGROUND, UNUSED)]
    rows += [(f"{len(classes)} classes", ", ".join(classes))] if classes else []
    versions = ", ".join(f"{name} {text}" for name, text in (about.get("versions") or {}).items())
    for name, text in (("device", about.get("device")), ("versions", versions), ("commit", about.get("git_commit"))):
        rows += [(name, text)] if text else []
    rows += [("started", about["started"])] if about.get("started") else []
    arguments = page.facts([(name, value) for name, value in run.args.items()])
    return [page.heading("Run", 3), page.facts(rows), page.folded("All arguments", arguments)]


def costs_of(dense: Run, run: Run) -> list[tuple[str, str, str, str]]:
    """Return rows of what two networks cost: name, dense, compressed, and the change in percent."""
    rows = []
    counted = [("MACs", "macs", format_count), ("parameters", "params", format_count)]
    for text, name, show in counted:
        a, b = dense.cost.get(name), run.cost.get(name)
        if a and b:
            rows.append((text, show(a), show(b), f"{100 * (b / a - 1):+.1f} %"))
    before, after = (one.seconds / max(1, len(one.epochs)) for one in (dense, run))
    if before and after:
        change = f"{100 * (after / before - 1):+.1f} %"
        rows.append(("training time of an epoch", duration(before), duration(after), change))
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
        f"Both detectors on the same {comparison.images} images. The interval is that of a paired bootstrap over the "
        f"images ({comparison.draws} draws): one that contains 0 says that the images do not tell the detectors apart."
    )
    return [
        page.heading("Beside the dense network", 3),
        page.table(header, rows),
        page.folded("AP of each class", page.table(header, classes)),
        page.paragraph(note, "note"),
    ]


def _cells(difference: Difference) -> tuple[str, str, str, str]:
    if difference.a is None or difference.b is None or difference.difference is None:
        return NONE, NONE, NONE, "no ground truth"
    low_high = difference.interval
    interval = NONE if low_high is None else f"{low_high[0]:+.3f} to {low_high[1]:+.3f}"
    return f"{difference.a:.3f}", f"{difference.b:.3f}", f"{difference.difference:+.3f}", interval
