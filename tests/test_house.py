"""Files and functions are short; and what many tests rely on is checked itself."""

import ast
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Refused, fill
from source import lengths

from norton_det.errors import DataError

ROOT = Path(__file__).parents[1]
FOLDERS = ("norton_det", "tools", "benchmarks", "scripts")
FILE_LIMIT, FILE_MEDIAN = 300, 120
FUNCTION_LIMIT, FUNCTION_MEDIAN = 50, 10


@pytest.fixture(scope="module")
def files() -> dict[str, int]:
    return {str(path): lengths(path)[0] for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


@pytest.fixture(scope="module")
def functions(files: dict[str, int]) -> dict[str, int]:
    return {name: count for path in files for name, count in lengths(Path(path))[1].items()}


def test_files_are_short(files: dict[str, int]) -> None:
    assert {path: lines for path, lines in files.items() if lines > FILE_LIMIT} == {}
    assert statistics.median(files.values()) <= FILE_MEDIAN
    assert {Path(path).relative_to(ROOT).parts[0] for path in files} == set(FOLDERS)


def test_functions_are_short(functions: dict[str, int]) -> None:
    assert {name: lines for name, lines in functions.items() if lines > FUNCTION_LIMIT} == {}
    assert statistics.median(functions.values()) <= FUNCTION_MEDIAN
    assert len(functions) > 800


def test_lengths_are_counted_without_the_docstring(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text('class A:\n    def f(self):\n        """One.\n\n        Two.\n        """\n        return 1\n')
    assert lengths(path) == (7, {f"{path}:2 f": 2})
    path.write_text("@decorator\ndef f(\n    x,\n):\n    1 + 1\n\n    def g(): return x\n    return g\n")
    assert lengths(path) == (8, {f"{path}:2 f": 7, f"{path}:7 g": 1})


def returning(code: int, error: str = "error: no such file", out: str = "") -> Callable[[], int]:
    def main() -> int:
        sys.stdout.write(out)
        sys.stderr.write(f"INFO\n{error}\n")
        return code

    return main


def raising() -> None:
    raise DataError("x.json: no such file")


def test_refusals_are_told_apart(tmp_path: Path, refused: Refused) -> None:
    refused(returning(3), 3, "no such", "file", unwritten=tmp_path)
    refused(raising, 3, "no such file")
    (tmp_path / "x").touch()
    for run, message, unwritten in (
        (returning(0), "no such file", None),
        (returning(2), "no such file", None),
        (returning(3), "another message", None),
        (returning(3, error="no such file"), "no such file", None),
        (returning(3, out="done"), "no such file", None),
        (returning(3), "no such file", tmp_path),
        (raising, "another message", None),
        (list, "", None),
    ):
        with pytest.raises((AssertionError, IndexError)):
            refused(run, 3, message, unwritten=unwritten)


def test_names_of_places_are_filled_in() -> None:
    words = fill(["--output", "OUT/x.json", "OUT", "OUTER", "a/OUT"], {"OUT": Path("/there")})
    assert words == ["--output", "/there/x.json", "/there", "OUTER", "a/OUT"]


def test_files_of_tests_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))  # pytest imports them by name alone


RUNS_CODE = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "os.system"}
RUNS_CODE |= {
    "yaml.load",
    "yaml.safe_load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
}
UNSAFE_IMPORTS = {"marshal", "shelve", "dill", "cloudpickle", "joblib"}
NARROWS = ("isinstance(", "not isinstance(", "callable(")


def unsafe(source: str) -> list[str]:
    """Return what in a module could run what a file says, and the assertions that do more than tell mypy a type."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, (ast.Call, ast.Assert, ast.Import, ast.ImportFrom)) else ""
        if isinstance(node, ast.Call):
            name, named = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            bad = name in RUNS_CODE or (name == "torch.load" and named.get("weights_only") != "True")
            bad |= named.get("shell", "False") != "False" or named.get("allow_pickle", "False") != "False"
        elif isinstance(node, ast.Assert):
            test = ast.unparse(node.test)
            bad = not (test.startswith(NARROWS) or test.endswith((" is not None", " is None")))
        else:
            bad = bool(text) and bool(UNSAFE_IMPORTS & set(text.replace(",", " ").replace(".", " ").split()))
        found += [text] * bad
    return found


def test_nothing_runs_what_a_file_says_and_no_assertion_checks_input() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {f"{path.relative_to(ROOT)}: {text}" for path in paths for text in unsafe(path.read_text())}
    assert found == set()
    wrong = [
        "eval(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "assert x",
    ]
    wrong += ["import marshal", "run(x, shell=True)", "yaml.load(x)", "from dill import load", "assert 0 < len(x)"]
    assert [text for text in wrong if not unsafe(text)] == []
