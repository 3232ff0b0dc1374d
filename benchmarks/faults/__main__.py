"""Run campaigns of faults; what is done already is kept: ``python -m benchmarks.faults [NAME ...]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.faults.campaign import NAMES, Campaign, campaign
from benchmarks.faults.cases import outcomes_in, run_cases
from benchmarks.faults.page import table, write_page


def main(words: Sequence[str] | None = None) -> int:
    """Run the campaigns that the command line names; return 1 if a promise was broken."""
    parser = _parser()
    args = parser.parse_args(words)
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"unknown campaign {unknown[0]!r}; expected one of: {', '.join(NAMES)}")
    args.output.mkdir(parents=True, exist_ok=True)
    broken = False
    for name in args.names or NAMES:
        broken |= _run(campaign(name), args)
    if args.page:
        write_page(args.output)
    return int(broken)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("benchmarks.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--quick", action="store_true", help="a few cases of each")
    parser.add_argument("--cases", type=int, help="number of cases instead of the campaign's")
    parser.add_argument("--seed", type=int, default=0, help="makes the cases (default: 0)")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth case from the Kth on (default: 1/1)")
    parser.add_argument("--output", type=Path, default=Path("build/faults"), help="folder of the outcomes")
    parser.add_argument("--page", action="store_true", help="write docs/promises.md from the outcomes")
    return parser


def _run(tried: Campaign, args: argparse.Namespace) -> bool:
    """Run what is left of a campaign, print its table, and tell whether a promise was broken."""
    part, parts = (int(number) for number in args.part.split("/"))
    size = args.cases or (tried.quick if args.quick else tried.size)
    indices = range(part - 1, size, parts)
    path = args.output / (f"{tried.name}.jsonl" if parts == 1 else f"{tried.name}.{part}of{parts}.jsonl")
    bar = tqdm(total=len(indices), desc=tried.name, unit="case", disable=None)
    bar.update(len([*filter(outcomes_in(path).__contains__, indices)]))
    for noted in run_cases(tried, args.seed, indices, path):
        bar.update()
        if not noted.held:
            tqdm.write(f"{tried.name} {noted.index}: {noted.kind}: {noted.note}", file=sys.stderr)
    bar.close()
    outcomes = [outcome for index, outcome in sorted(outcomes_in(path).items()) if index in indices]
    print(f"{tried.title}: {len(outcomes)} cases, seed {args.seed}. {tried.promise}\n\n{table(outcomes)}\n")
    return not all(each.held for each in outcomes)


if __name__ == "__main__":
    sys.exit(main())
