"""Files of weights and checkpoints are damaged, or tell lies: what is loaded is what they say."""

import logging
import time
from pathlib import Path
from random import Random

import torch

from benchmarks.faults.campaign import Campaign, Outcome
from benchmarks.faults.files.bases import Base, Read, make_bases
from benchmarks.faults.files.mutations import KINDS, Mutated
from benchmarks.memory import peak_memory
from norton_det.errors import DataError

_MOST_SECONDS = 10.0
_MORE_MEMORY = 200  # MB, besides twice the file


def prepare(folder: Path) -> list[Base]:
    """Write the files that are changed; load each once, so that what is imported does not count as memory."""
    logging.getLogger("norton_det").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    bases = make_bases(folder)
    for base in bases:
        base.read(base.path)
    return bases


def run(bases: list[Base], index: int, random: Random, folder: Path) -> Outcome:
    """Change one file, read it, and compare what was read with what was written or is said."""
    name = list(KINDS)[index % len(KINDS)]
    base = random.choice([base for base in bases if KINDS[name].suits(base)])
    mutated = KINDS[name].change(base, random, folder, bases)
    kind = f"{base.kind}: {name}"
    read: list[Read | DataError] = []
    began = time.process_time()
    memory = peak_memory(lambda: read.append(_read(base, mutated.path))) or 0.0
    seconds, size = time.process_time() - began, mutated.path.stat().st_size / 1e6
    problem = _problem(base, mutated, read[0])
    if seconds > _MOST_SECONDS:
        problem = problem or f"takes {seconds:.1f} s"
    if memory > 2 * size + _MORE_MEMORY:
        problem = problem or f"takes {memory:.0f} MB; the file has {size:.1f}"
    note = problem or (f"refused: {read[0]}" if isinstance(read[0], DataError) else "")
    return Outcome(kind, not problem, f"{base.path.name}, {mutated.what}: {note}" if note else "")


def _read(base: Base, path: Path) -> Read | DataError:
    try:
        return base.read(path)
    except DataError as error:
        return error


def _problem(base: Base, mutated: Mutated, read: Read | DataError) -> str:
    """Return which promise is broken; an empty text if none is."""
    if isinstance(read, DataError):
        text = str(read)
        if mutated.must == "load":
            return f"refused: {text}"
        if "\n" in text or len(text) > 1000 or not text.startswith(str(mutated.path)) or "weights_only" in text:
            return f"not one line that names the file: {text!r}"
        return ""
    if mutated.must == "refuse":
        return "was loaded"
    try:
        expected = base.original if mutated.must == "same" else mutated.says()
    except DataError as error:
        return f"was loaded, though it says nothing that can be read: {error}"
    return read.difference(expected)


CAMPAIGN = Campaign(
    name="files",
    title="Damaged files, and files that lie",
    promise="a damaged file loads with exactly its content or is refused in one line that names it; one whose checksum "
    "fits loads as what it says, or is refused likewise. Loading takes at most twice the file's size and 200 MB.",
    size=2000,
    quick=19,
    seconds=120,
    prepare=prepare,
    run=run,
)
