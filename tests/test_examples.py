"""Each public name has an example in its docstring, and the examples run."""

import doctest
from pathlib import Path

import pytest

import norton_det as nd

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(thing: object, name: str) -> tuple[int, str]:
    """Run the examples of a docstring and of those below it; return how many it has itself, and what went wrong."""
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    report: list[str] = []
    own = 0
    for test in doctest.DocTestFinder().find(thing, name, module=False, globs={}):
        own += len(test.examples) if test.name == name else 0
        runner.run(test, out=report.append)
    return own, "".join(report)


@pytest.mark.parametrize("name", nd.__all__)
def test_the_example_of_a_public_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # files that an example writes
    own, report = examples(getattr(nd, name), name)
    assert own > 0, f"the docstring of norton_det.{name} has no example"
    assert report == ""


def test_examples_that_lack_or_fail_are_found() -> None:
    def none() -> None:
        """Do nothing."""

    def right() -> None:
        """Add.

        Example:
            >>> import math
            >>> math.pi
            3.14...
        """

    def wrong() -> None:
        """Add.

        >>> 1 + 1
        3
        """

    class Own:
        """A class without an example of its own.

        Its method has one.
        """

        def method(self) -> None:
            """Add.

            >>> 1 + 1
            3
            """

    assert examples(none, "none") == (0, "")
    assert examples(right, "right") == (2, "")
    assert examples(wrong, "wrong")[0] == 1
    assert "Expected:\n    3\nGot:\n    2" in examples(wrong, "wrong")[1]
    assert examples(Own, "Own")[0] == 0
    assert "Got:\n    2" in examples(Own, "Own")[1]
