"""Benchmarks of the package against the alternatives that a user has, both in one process, in turn.

``python -m benchmarks.run NAME`` measures, and ``python -m benchmarks.report`` writes the page with the results.
"""

from benchmarks import growth, methods, networks, start
from benchmarks.compare import CASES, Row, Settings, compare_sides, read_rows

__all__ = ["BENCHMARKS", "CASES", "Row", "Settings", "compare_sides", "read_rows"]

BENCHMARKS = {
    "decompose": methods.decompositions,
    "similarity": methods.similarities,
    "backbone": networks.backbones,
    "detector": networks.detectors,
    "train-step": networks.train_steps,
    "import": start.imports,
    growth.NAME: growth.growths,
}
"""The benchmarks by name: functions that yield the name and the arguments of each case."""
