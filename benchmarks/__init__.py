"""Benchmarks: what this package does against what a user would do otherwise, both in one process, in turn."""

from benchmarks import growth, methods, networks, start
from benchmarks.compare import CASES, Row, Settings, compare, read_rows

__all__ = ["BENCHMARKS", "CASES", "Row", "Settings", "compare", "read_rows"]

BENCHMARKS = {
    "decompose": methods.decompositions,
    "similarity": methods.similarities,
    "backbone": networks.backbones,
    "detector": networks.detectors,
    "train-step": networks.train_steps,
    "import": start.imports,
    growth.NAME: growth.growths,
}
"""The benchmarks: settings -> names of cases and their arguments."""
