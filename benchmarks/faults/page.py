"""The tables of docs/promises.md, from the outcomes of the campaigns."""

import platform
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.faults.campaign import NAMES, Campaign, campaign
from benchmarks.faults.cases import Noted, outcomes_in

PAGE = Path(__file__).parent.parent.parent / "docs" / "promises.md"
START, END = "<!-- outcomes: written by python -m benchmarks.faults --page -->", "<!-- end of outcomes -->"
_COLUMNS = ("campaign", "cases", "kept", "controls", "minutes", "slowest", "commit")


def table(outcomes: Iterable[Noted]) -> str:
    """Return how many cases of each kind there were, and of how many the promise was kept."""
    outcomes = [*outcomes]
    cases, held = (Counter(each.kind for each in outcomes if each.held or number == 0) for number in (0, 1))
    rows = [[kind, number, held[kind]] for kind, number in sorted(cases.items())]
    rows.append(["**all**", len(outcomes), sum(held.values())])
    return str(tabulate(rows, ["fault", "cases", "promise kept"], tablefmt="github"))


def write_page(folder: Path, page: Path = PAGE) -> None:
    """Put the tables of the outcomes in a folder into the page, in place of those before.

    Raises:
        ValueError: the page lacks the marks between which they stand.
    """
    text = page.read_text()
    before, marked, rest = text.partition(START)
    _, ended, after = rest.partition(END)
    if not marked or not ended:
        raise ValueError(f"{page} has no {START!r} with {END!r} behind it")
    found = [(campaign(name), outcomes) for name in NAMES if (outcomes := _outcomes(folder, name))]
    summary = tabulate([_row(*each) for each in found], _COLUMNS, tablefmt="github", disable_numparse=True)
    body = "\n\n".join(
        [
            f"{summary}\n\nControls have no fault. Written with Python {platform.python_version()}.",
            *(_section(*one) for one in found),
        ]
    )
    page.write_text(f"{before}{START}\n\n{body}\n\n{END}{after}")


def _outcomes(folder: Path, name: str) -> list[Noted]:
    """Return the outcomes of all parts of a campaign."""
    files = [outcomes_in(path) for path in sorted(folder.glob(f"{name}.*jsonl"))]
    outcomes = {index: each for file in files for index, each in file.items()}
    return [outcomes[index] for index in sorted(outcomes)]


def _row(tried: Campaign, outcomes: Sequence[Noted]) -> list[str]:
    of_all = "" if len(outcomes) == tried.size else f" of {tried.size:,}"
    controls = sum("control" in each.kind for each in outcomes)
    minutes, slowest = sum(each.seconds for each in outcomes) / 60, max(each.seconds for each in outcomes)
    return [
        f"[{tried.name}](#{re.sub(r'[^a-z0-9]+', '-', tried.title.lower())})",
        f"{len(outcomes):,}{of_all}",
        f"{sum(each.held for each in outcomes):,}",
        f"{controls:,}",
        f"{minutes:.1f}",
        f"{slowest:.1f} s",
        _listed(each.commit for each in outcomes),
    ]


def _section(tried: Campaign, outcomes: Sequence[Noted]) -> str:
    seeds = _listed(each.seed for each in outcomes)
    command = f"python -m benchmarks.faults {tried.name} --seed {seeds}"
    return f"### {tried.title}\n\nPromised: {tried.promise}\n\n```sh\n{command}\n```\n\n{table(outcomes)}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted({*map(str, values)}))
