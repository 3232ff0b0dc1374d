"""Write the page on speed, and its picture of how cost grows, from rows of benchmark.py."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import BENCHMARKS, Row, read_rows
from benchmarks.growth import NAME, growth_figure
from norton_det.cli.common import Parser, command
from norton_det.errors import UsageError
from norton_det.files import write_atomically

DOCS = Path(__file__).parent.parent / "docs"
PICTURE = "speed_growth.svg"
_HEADER = ("", "ours, s", "other, s", "ratio", "spread", "ours, MB", "other, MB", "")
_PAGE = """# Speed

Written by `python tools/speed.py`; do not edit. All figures come from this, on a machine that does nothing else; the
name of one benchmark in place of `all` brings its rows up to date:

```sh
python tools/benchmark.py all --output docs/speed.json && python tools/speed.py
```

## Method

Ours and what a user would do otherwise run in one process, in turn, after a run of each that does not count. *Ratio*
is the median of the ratios of neighbouring runs; *spread* is the largest time less the smallest, over the median, of
ours and of the other. Memory is the peak of a run less what was there before it (networks, images, factors): of
resident pages, on a GPU of tensors.

- `decompose`: the sixteen 3x3 convolutions of a ResNet-50 (random weights). The other is a loop of tensorly's `parafac`
  (random start, at most 300 iterations) on two filters of each layer, scaled to all.
- `similarity`: PABS of 512 filters with 512 channels, and their elimination down to a quarter. The other is a loop of
  scipy's `subspace_angles` over the pairs of 24 filters, scaled to all pairs, without an elimination.
- `backbone`: the 0.92G ResNet-50, deployed, against the dense one deployed the same way, and against itself as three
  convolutions and a sum a block; and a ResNet-50 of rank 4 without pruning against the dense one. Every kind of layer
  is timed by itself.
- `detector`: the three R-CNNs with that backbone at 800x800, both deployed, at exactly 1000 proposals and one
  detection, fixed so that the work does not depend on the weights. Every part is timed by itself. Linear layers and
  RoIAlign are deployed as well, on both sides.
- `train-step`: forward, back and update of every published classifier, each CP block and batch norm in its fastest
  implementation
  (`torch` and `wide` are those of batch norms), and the network in its fastest memory format, against the dense network
  in its. 128 images a step on CIFAR-10, 16 at 224x224. The published fine-tuning has 256; the more images, the less
  it weighs that kernels are built from their factors. `--train-batch 256 --only resnet56_38m` shows that for one row.
- `import`: a new interpreter that imports `norton_det`, against one that imports `torchvision`.

`--device cuda`, with `--amp` or without, does the networks on a GPU.

On Linux, glibc hands every buffer of more than 32 MB back to the system as soon as it is free, and the system clears it
when it is wanted again; a batch of large images has many in each pass. All tools of this package, the benchmarks
included, on both sides, keep such memory; a program of your own does after

```python
from norton_det.runtime.malloc import keep_freed_memory

keep_freed_memory()
```

{results}

## Where the rest of the time goes

Fewer multiply-accumulates (MACs) are not as much less time:

- *Backbone.* Only the 3x3 convolutions are decomposed, and they become about ten times as fast. The 1x1 convolutions
  around them get narrower and no more; they are most of what is left. The stem is the dense one. Additions, ReLU and
  pooling move as much memory as before wherever the width of a stage stays. And narrow layers do fewer MACs a second
  than wide ones (see the last column).
- *Against plain blocks* the deployed network gains the folded batch norms, `channels_last` and one convolution for
  two; the 1x1 convolutions have the same MACs on both sides.
- *Detector.* FPN, RPN and RoI heads cost the same on both sides and are most of the time of ours: what the backbone
  saves is the whole gain.
- *Training.* A small network with many narrow layers trains fastest with dense kernels that are built from the
  factors in each step. Its convolutions then are those of the dense network but for the channels that were pruned,
  and where few were, building the kernels takes what they save.
"""


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, draw and write."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", default=str(DOCS / "speed.json"), metavar="FILE", help="rows of benchmark.py")
    parser.add_argument("--output", default=str(DOCS / "speed.md"), metavar="FILE", help="page to write")
    args = parser.parse_args(argv)
    page = Path(args.output)
    if not page.parent.is_dir():
        raise UsageError(f"--output {page}: folder {page.parent} does not exist")
    rows = read_rows(Path(args.rows))
    results = _results(rows) if rows else "Nothing has been measured yet."
    if any(row.benchmark == NAME for row in rows):
        write_atomically(page.parent / PICTURE, growth_figure(rows).savefig)
    write_atomically(page, lambda name: Path(name).write_text(_PAGE.format(results=results)))
    print(f"written: {page}")


def _results(rows: Sequence[Row]) -> str:
    sections = ["## Results", "\n".join(f"Machine: {machine}." for machine in sorted({row.machine for row in rows}))]
    for name in BENCHMARKS:
        chosen = [row for row in rows if row.benchmark == name]
        if chosen and name == NAME:
            sections += ["### How cost grows", f"![Seconds against what grows]({PICTURE})"]
        elif chosen:
            sections += [f"### {name}", _markdown(_HEADER, [_cells(row) for row in chosen])]
            sections += [_parts(row) for row in chosen if row.parts]
    return "\n\n".join(sections)


def _cells(row: Row) -> list[str]:
    memory = ["" if value is None else f"{value:.0f}" for value in (row.ours_memory, row.other_memory)]
    spread = f"{row.ours_spread:.0%} / {row.other_spread:.0%}"
    return [row.name, f"{row.ours:.3g}", f"{row.other:.3g}", f"{row.ratio:.2f}", spread, *memory, row.detail]


def _parts(row: Row) -> str:
    cells = [(part, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}") for part, (a, b) in row.parts.items()]
    return f"Parts of {row.name}:\n\n{_markdown(('part', 'ours, s', 'other, s', 'ratio'), cells)}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
