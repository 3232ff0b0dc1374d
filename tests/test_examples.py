"""Each public name has an example in its docstring, and the examples of all modules run."""

import doctest
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

import norton_det as nd
from norton_det.models import ARCHITECTURES

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = [name for name in nd.__all__ if callable(getattr(nd, name))]
MODULES = [module.name for module in pkgutil.walk_packages(nd.__path__, "norton_det.") if "__main__" not in module.name]


def examples(thing: object, name: str) -> list[doctest.DocTest]:
    """Return the examples of a docstring and of those below it."""
    found = doctest.DocTestFinder().find(thing, name)
    return [test for test in found if test.examples]


def failures(tests: list[doctest.DocTest]) -> str:
    """Run examples and return what went wrong."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    for test in tests:
        runner.run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name: str) -> None:
    assert any(test.name == name for test in examples(getattr(nd, name), name))


def test_most_names_are_public_callables() -> None:
    assert set(nd.__all__) - set(PUBLIC) == {"__version__"}


IMPORT_WHAT_THEY_USE = tuple(f"{getattr(nd, name).__module__}.{name}." for name in PUBLIC)
WITH_EXAMPLES = [name for name in MODULES if examples(importlib.import_module(name), name)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for files that an example writes
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    found = examples(importlib.import_module(name), name)
    for test in found:
        if f"{test.name}.".startswith(IMPORT_WHAT_THEY_USE):
            test.globs = {}  # not the module's
    assert failures(found) == ""


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 20


def test_examples_that_fail_are_found() -> None:
    module = ModuleType("module", "Add.\n\n>>> 1 + 1\n3\n")
    assert "Expected:" in failures(examples(module, "module"))
    module.__doc__ = "Add.\n\n>>> 1 + 1\n2\n"
    assert failures(examples(module, "module")) == ""
    assert len(examples(module, "module")) == 1
