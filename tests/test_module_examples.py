"""The examples in the docstrings of the folders whose names are imported from their modules run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import norton_det

FOLDERS = {"data", "evaluation", "reporting", "runtime", "training", "visualization"}
FILES = {"errors", "files", "formatting"}
NAMES = [module.name for module in pkgutil.walk_packages(norton_det.__path__, "norton_det.")]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(name: str) -> list[doctest.DocTest]:
    """Return the examples of a module; they have to import what they use."""
    found = doctest.DocTestFinder().find(importlib.import_module(name), name, globs={})
    return [test for test in found if test.examples]


MODULES = [name for name in NAMES if name.split(".")[1] in FOLDERS | FILES and examples(name)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for files that an example writes
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    for test in examples(name):
        runner.run(test, out=report.append)
    assert "".join(report) == ""


def test_there_are_examples() -> None:
    assert {name.split(".")[1] for name in MODULES} == FOLDERS | FILES
