"""The tables of docs/promises.md, from the outcomes of the campaigns."""

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.faults.campaign import NAMES, campaign
from benchmarks.faults.cases import Noted, outcomes_in

PAGE = Path(__file__).parent.parent.parent / "docs" / "promises.md"
START, END = "<!-- outcomes: written by python -m benchmarks.faults --page -->", "<!-- end of outcomes -->"


def table(outcomes: Iterable[Noted]) -> str:
    """Return how many cases of each kind there were, and of how many the promise was kept."""
    outcomes = [*outcomes]
    cases, held = (Counter(each.kind for each in outcomes if each.held or number == 0) for number in (0, 1))
    rows = [[kind, number, held[kind]] for kind, number in sorted(cases.items())]
    rows.append(["**all**", len(outcomes), sum(held.values())])
    return str(tabulate(rows, ["fault", "cases", "promise kept"], tablefmt="github"))


def write_page(folder: Path, page: Path = PAGE) -> None:
    """Put the tables of the outcomes in a folder into the page; a campaign without outcomes keeps its table.

    Raises:
        ValueError: the page lacks the marks between which they stand.
    """
    text = page.read_text()
    before, marked, rest = text.partition(START)
    old, ended, after = rest.partition(END)
    if not marked or not ended:
        raise ValueError(f"{page} has no {START!r} with {END!r} behind it")
    sections = _sections(old)
    for name in NAMES:
        files = [outcomes_in(path) for path in sorted(folder.glob(f"{name}.*jsonl"))]
        outcomes = {index: each for file in files for index, each in file.items()}
        if outcomes:
            sections[name] = _section(name, [outcomes[index] for index in sorted(outcomes)])
    body = "\n\n".join(sections[name] for name in NAMES if name in sections)
    page.write_text(f"{before}{START}\n\n{body}\n\n{END}{after}")


def _section(name: str, outcomes: Sequence[Noted]) -> str:
    tried = campaign(name)
    seeds, commits = (_listed(getattr(each, name) for each in outcomes) for name in ("seed", "commit"))
    of_all = "" if len(outcomes) == tried.size else f" of {tried.size:,}"
    minutes = sum(each.seconds for each in outcomes) / 60
    slowest = max(each.seconds for each in outcomes)
    facts = (
        f"`python -m benchmarks.faults {name} --seed {seeds}`: {len(outcomes):,}{of_all} cases, {minutes:.0f} minutes "
        f"(the slowest case {slowest:.1f} s), commit {commits}, Python {platform.python_version()}."
    )
    return f"### {tried.title}\n\nPromised: {tried.promise}\n\n{facts}\n\n{table(outcomes)}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted({*map(str, values)}))


def _sections(text: str) -> dict[str, str]:
    """Return the sections of a page by the name of the campaign in their commands."""
    parts = [f"### {part.strip()}" for part in text.split("\n### ")[1:]]
    return {part.split("benchmarks.faults ")[1].split()[0]: part for part in parts}
