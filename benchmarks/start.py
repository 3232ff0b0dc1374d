"""Benchmark of the time to import the package, against torchvision, which it imports."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.compare import CASES, Case, Settings, Side


def imports(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the case of the benchmark ``import``."""
    yield "import", {}


def import_(ours: str = "norton_det", other: str = "torchvision") -> Case:
    """Return a case: import the package in a new interpreter; other: torchvision."""
    return Case(f"import {ours}; other: {other}", partial(_import, ours), partial(_import, other), in_process=False)


def _import(name: str) -> Side:
    return Side(partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True))


CASES.register("import", import_)
