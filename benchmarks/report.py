"""Write the page of the benchmark results, with its figure of how the cost grows, from the rows of benchmarks.run."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import BENCHMARKS, Row, read_rows
from benchmarks.growth import NAME, growth_figure
from norton_det.cli.common import Parser, command
from norton_det.errors import UsageError
from norton_det.files import write_atomically, write_text
from norton_det.formatting import table

DOCS = Path(__file__).parent.parent / "docs"
FIGURE = "speed_growth.svg"
_HEADER = ("case", "ours, s", "other, s", "ratio", "spread", "ours, MB", "other, MB", "remarks")
_PARTS_HEADER = ("part", "ours, s", "other, s", "ratio")
_PAGE = """# Speed

Written by `python -m benchmarks.report`; do not edit. All numbers are measured by the following command on a machine
without other load. With the name of one benchmark in place of `all`, it updates the rows of this benchmark alone.

```sh
python -m benchmarks.run all --output docs/speed.json && python -m benchmarks.report
```

`norton-det benchmark FILE` times a network of your own.

## Method

The package (*ours*) and an alternative that a user has (*other*) run in turn in one process, after a warm-up run of
each. *Ratio* is the median of other / ours over the pairs of runs. *Spread* is (largest - smallest) / median of the
times of both sides. Memory is the peak of a run minus the memory before it, which includes networks, images and
factors: of resident pages on the CPU, of tensors on a GPU.

- `decompose`: decomposition of the sixteen 3x3 convolutions of a ResNet-50 with random weights. The alternative is a
  loop of tensorly's `parafac` (random start, at most 300 iterations) over two filters of each layer, scaled to all.
- `similarity`: PABS of 512 filters with 512 channels, and their elimination to a quarter. The alternative is a loop of
  scipy's `subspace_angles` over the pairs of 24 filters, scaled to all pairs, without elimination.
- `backbone`: the 0.92G ResNet-50, deployed, against the dense one, deployed the same way, and against itself with three
  convolutions and a sum in each block; and a ResNet-50 of rank 4 without pruning against the dense one. Each kind of
  layer is timed separately.
- `detector`: the three R-CNNs with this backbone at 800x800, both sides deployed (linear layers and RoIAlign included),
  with exactly 1000 proposals and one detection, so that the amount of work does not depend on the weights. Each part is
  timed separately.
- `train-step`: forward pass, backward pass and update of every published classifier, each CP block and batch norm in
  its fastest implementation (`torch` and `wide` are those of batch norms) and the network in its fastest memory format,
  against the dense network in its own. The batch size is 128 on CIFAR-10 and 16 at 224x224. The published fine-tuning
  has 256; the larger the batch, the smaller the cost of building kernels from their factors:
  `--train-batch 256 --only resnet56_38m` shows this for one row.
- `import`: a new interpreter that imports `norton_det`, against one that imports `torchvision`.

`--device cuda`, with or without `--amp`, runs the networks on a GPU.

On Linux, glibc returns every buffer of more than 32 MB to the system when it is freed, and the system clears the memory
when it is allocated again. A batch of large images has many such buffers in each pass. All commands of this package
keep freed memory, and so do both sides of the benchmarks. Other programs do so after

```python
from norton_det.runtime.malloc import keep_freed_memory

keep_freed_memory()
```

{results}

## Where the remaining time goes

The time decreases less than the number of multiply-accumulates (MACs):

- *Backbone.* Only the 3x3 convolutions are decomposed; they become about ten times as fast. The 1x1 convolutions around
  them only become narrower, and they take most of the remaining time. The stem is not changed. Additions, ReLU and
  pooling process as much memory as before wherever the width of a stage is not changed. And narrow layers do fewer MACs
  per second than wide ones (see the last column).
- *Against plain blocks* the deployed network gains by folded batch norms, `channels_last`, and one convolution instead
  of two. The 1x1 convolutions have the same MACs on both sides.
- *Detector.* FPN, RPN and RoI heads cost the same on both sides and take most of our time; the gain is that of the
  backbone alone.
- *Training.* A small network with many narrow layers trains fastest with dense kernels that are built from the factors
  in each step. Its convolutions then differ from those of the dense network by the pruned channels only. If few
  channels are pruned, building the kernels costs what they save.
"""


@command
def main(argv: Sequence[str]) -> None:
    """Parse the arguments, and write the page and the figure."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", default=str(DOCS / "speed.json"), metavar="FILE", help="rows of benchmarks.run")
    parser.add_argument("--output", default=str(DOCS / "speed.md"), metavar="FILE", help="page to write")
    args = parser.parse_args(argv)
    page = Path(args.output)
    if not page.parent.is_dir():
        raise UsageError(f"--output {page}: folder {page.parent} does not exist")
    rows = read_rows(Path(args.rows))
    results = _results(rows) if rows else "Nothing has been measured yet."
    if any(row.benchmark == NAME for row in rows):
        write_atomically(page.parent / FIGURE, growth_figure(rows).savefig)
    write_text(page, _PAGE.format(results=results))
    print(f"written: {page}")


def _machines(rows: Sequence[Row]) -> list[str]:
    """Return a line for each machine, with the benchmarks that ran on it where there are several."""
    benchmarks: dict[str, dict[str, None]] = {}
    for row in rows:
        benchmarks.setdefault(row.machine, {})[row.benchmark] = None
    return [
        f"Machine: {machine}." if len(benchmarks) == 1 else f"Machine of {', '.join(names)}: {machine}."
        for machine, names in benchmarks.items()
    ]


def _results(rows: Sequence[Row]) -> str:
    sections = ["## Results", "\n".join(_machines(rows))]
    for name in BENCHMARKS:
        of_benchmark = [row for row in rows if row.benchmark == name]
        if of_benchmark and name == NAME:
            sections += ["### Growth of the cost", f"![Seconds against each number that varies]({FIGURE})"]
        elif of_benchmark:
            sections += [f"### {name}", table(_HEADER, [_cells(row) for row in of_benchmark], "markdown")]
            sections += [_parts(row) for row in of_benchmark if row.parts]
    return "\n\n".join(sections)


def _cells(row: Row) -> list[str]:
    memory = ["" if value is None else f"{value:.0f}" for value in (row.ours_memory, row.other_memory)]
    spread = f"{row.ours_spread:.0%} / {row.other_spread:.0%}"
    return [row.name, f"{row.ours:.3g}", f"{row.other:.3g}", f"{row.ratio:.2f}", spread, *memory, row.detail]


def _parts(row: Row) -> str:
    cells = [(part, f"{a:.3f}", f"{b:.3f}", f"{b / a:.2f}") for part, (a, b) in row.parts.items()]
    return f"Parts of {row.name}:\n\n{table(_PARTS_HEADER, cells, 'markdown')}"


if __name__ == "__main__":
    sys.exit(main())
