"""What README, CONTRIBUTING and docs/ show is true: commands parse, code compiles, names and files exist."""

import argparse
import ast
import importlib
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tool

import norton_det as nd
from norton_det.cli.main import COMMANDS
from norton_det.cli.main import main as commands_main
from norton_det.models import ARCHITECTURES
from scripts.site_pages import pages

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HERE = re.compile(r"^python - (.*)<<'EOF'\n(.*?)\nEOF$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
_NAME = re.compile(r"(?<![\w./-])(?:nd|norton_det)((?:\.[A-Za-z_]\w*)+)(?![\w./-]*/)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_OTHERS_FLAGS = {"--nproc_per_node"}  # torchrun's


def blocks(document: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(document.read_text()) if language in languages]


def code(document: Path) -> list[str]:
    """Return the Python code of a document: blocks, and what a shell script hands to Python."""
    return [*blocks(document, "python"), *(snippet for _, snippet in _HERE.findall(document.read_text()))]


def inline(document: Path) -> list[str]:
    return _INLINE.findall(_BLOCK.sub("", document.read_text()))


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell script; a command ends with a line, unless a quotation is open."""
    lines = _HERE.sub("", script).replace("\\\n", " ").splitlines()
    open_command = ""
    for line in lines:
        open_command += f"{line}\n"
        try:
            words = shlex.split(open_command, comments=True)
        except ValueError:  # no closing quotation
            continue
        open_command = ""
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words
    assert not open_command, f"not closed: {open_command}"


class Parsed(BaseException):  # no command catches it
    """A command has parsed its arguments."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that lets a command parse words, and returns its parser and the arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, words: Any = None) -> None:
        raise Parsed(parser, original(parser, words))

    def run(main: Any, words: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
        try:
            assert main(words) == 0, capsys.readouterr().err
        except Parsed as parsed:
            return parsed.args
        except SystemExit as stop:  # what prints and ends a command, as --list-rates
            if stop.code:
                raise
            return argparse.ArgumentParser(), argparse.Namespace()
        pytest.fail("the command did not parse its arguments")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.chdir(ROOT)
    return run


def entry(words: list[str]) -> tuple[Any, list[str]]:
    """Return the ``main`` that a command of a document runs, and its arguments."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "torchrun":
        words = ["python", *itertools.dropwhile(lambda word: word.startswith("--"), words[1:])]
    match words:
        case ["python", "-m", module, *arguments] if module.startswith(("benchmarks.", "scripts.")):
            is_package = (ROOT / module.replace(".", "/")).is_dir()
            return importlib.import_module(f"{module}.__main__" if is_package else module).main, arguments
        case ["norton-det", *arguments] | ["python", "-m", "norton_det", *arguments]:
            return importlib.import_module("norton_det.cli.main").main, arguments
        case ["python", file, *arguments] if (path := Path(file)).parts[0] == "tools":
            assert (ROOT / path).is_file(), file
            return tool(path.stem).main, arguments
        case ["python", file, *arguments] if Path(file).suffix == ".py":
            return importlib.import_module(file.removesuffix(".py").replace("/", ".")).main, arguments
    return None, words


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def extras() -> set[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()


def check_other_command(words: list[str]) -> None:
    match words:
        case ["make", *names]:
            assert set(names) <= targets(), words
        case ["pip" | "pip3", "install", *options, package]:
            assert set(options) <= {"-e", "--editable"}, words
            wheel = re.escape(f"norton_det-{nd.__version__}-py3-none-any.whl")
            named = re.fullmatch(rf"(?:norton-det|\.|{wheel})(?:\[([\w,]+)\])?", package)
            assert named, words
            assert not named[1] or set(named[1].split(",")) <= extras(), words
        case [".ci/run"] | ["cd", _] | ["pip", "wheel", "--no-deps", "."]:
            pass
        case _:
            pytest.fail(f"a command that this test does not know: {words}")


def parameters(read: Callable[[Path], list[str]]) -> list[Any]:
    found = [(f"{document.name}-{i}", text) for document in DOCUMENTS for i, text in enumerate(read(document))]
    return [pytest.param(text, id=name) for name, text in found]


SCRIPTS = parameters(lambda document: blocks(document, "sh"))
SNIPPETS = parameters(code)


@pytest.mark.parametrize("script", SCRIPTS)
def test_commands_are_parsed_by_their_own_parsers(script: str, parse: Any) -> None:
    check_script(script, parse)


def check_script(script: str, parse: Any) -> None:
    written: set[str] = set()  # by a command above
    for words in commands(script):
        main, arguments = entry(words)
        if main is None:
            check_other_command(arguments)
            continue
        arguments = ["configs/cifar10/resnet56_14m.yaml" if word in written else word for word in arguments]
        _, parsed = parse(main, arguments)
        written |= {word for word in (getattr(parsed, "output", None),) if str(word).endswith(".yaml")}
        for word in arguments:
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help_of_a_command_are_parsed(name: str, parse: Any) -> None:
    docstring = importlib.import_module(f"norton_det.cli.{name.replace('-', '_')}").__doc__ or ""
    _, _, script = docstring.partition("\nExample")
    assert f"norton-det {name} " in script
    check_script(script.partition(":\n")[2], parse)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_compile_and_their_names_exist(snippet: str) -> None:
    tree = ast.parse(snippet)
    compile(snippet, "document", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    assert_names(snippet)


def assert_names(text: str) -> None:
    for dotted in _NAME.findall(text):
        assert resolves(dotted.removeprefix(".").split(".")), f"norton_det{dotted}"


def resolves(names: list[str]) -> bool:
    value: Any = nd
    path = "norton_det"
    for name in names:
        path += f".{name}"
        try:
            value = getattr(value, name) if hasattr(value, name) else importlib.import_module(path)
        except ImportError:
            return False
    return True


def test_the_languages_of_blocks_are_known() -> None:
    found = {language for document in DOCUMENTS for language, _ in _BLOCK.findall(document.read_text())}
    assert found <= {"sh", "python", "json", "yaml", "text"}
    assert len(SCRIPTS) > 10
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_and_files_in_the_text_exist(document: Path) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("out", "demo")}
    for text in inline(document):
        assert_names(text)
        for word in text.split():
            if "/" in word and word.split("/")[0] in folders and not set(word) & set("*<>{}[]|"):
                assert (ROOT / word).exists(), f"{document.name}: {word}"
        if re.match(r"(make|pip install) ", text):
            (words,) = commands(text)
            check_other_command(words)
    for target in _LINK.findall(document.read_text()):
        found = target in pages() if document.parent.name == "docs" else False  # generated for the site
        assert "://" in target or found or (document.parent / target).exists(), f"{document.name}: {target}"


def test_flags_in_the_text_are_flags_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_known_args(parser: argparse.ArgumentParser, *words: Any) -> None:
        raise Parsed(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
    flags = set(_OTHERS_FLAGS)
    mains = [tool(path.stem).main for path in (ROOT / "tools").glob("*.py")]
    for run in [*mains, lambda words: commands_main(["benchmark", *words])]:
        with pytest.raises(Parsed) as parsed:
            run([])
        flags |= parsed.value.args[0]._option_string_actions.keys()
    assert flags >= {"--rates", "--image-size", "--help"}
    for document in DOCUMENTS:
        for text in inline(document):
            assert set(_FLAG.findall(text)) <= flags, f"{document.name}: {text}"


def test_the_quick_start_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = blocks(ROOT / "docs" / "quickstart.md", "python")
    assert 'weights="IMAGENET1K_V2"' in snippet
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet.replace('weights="IMAGENET1K_V2"', "weights=None"), names)  # nothing is downloaded
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(names["fast"](image), names["backbone"](image), rtol=1e-3, atol=1e-3)
    assert names["detector"].backbone.body.layer1[0].conv3.out_channels == 230


def test_the_network_of_the_page_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "own_networks.md"
    (snippet,) = blocks(page, "python")
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["net"][0].rank == 1
    assert names["net"][0].out_channels == 4
    output = tmp_path / "tiny.safetensors"
    (words,) = (text for text in inline(page) if text.startswith("norton_det.cli.main.main("))
    assert '"compress", "--arch", "tiny", ...' in words
    assert commands_main(["compress", "--arch", "tiny", "--rank", "1", "--output", str(output)]) == 0
    assert nd.load(output)[1].ranks == {"0": 1}


# The checks themselves.


def test_commands_end_where_the_shell_ends_them() -> None:
    script = "a b \\\n    c  # why\n\npython - x <<'EOF'\nimport sys\nEOF\nd 'e\nf' && g\n"
    assert list(commands(script)) == [["a", "b", "c"], ["d", "e\nf"], ["g"]]
    with pytest.raises(AssertionError, match="not closed"):
        list(commands("a 'b"))


@pytest.mark.parametrize(
    "line",
    [
        "python tools/compress.py --arch resnet56_cifar --outputs x.safetensors",
        "python tools/compress.py --arch resnet56_cifar",  # lacks --output
        "python tools/complexity.py --jsn x",
        "OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 tools/train_det.py --epochs many",
        "python tools/compress.py --config configs/none.yaml --output x.safetensors",
        "python tools/none.py",
        "python -m benchmarks.run none",
        "norton-det none",
        "make nothing",
        'pip install "norton-det[none]"',
        "rm -rf x",
    ],
)
def test_a_wrong_command_is_found(line: str, parse: Any) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, ImportError)):
        check_script(line, parse)


@pytest.mark.parametrize("text", ["nd.nothing(x)", "norton_det.cost.nothing", "norton_det.nothing.at_all"])
def test_a_wrong_name_is_found(text: str) -> None:
    assert_names("nd.compress(net), norton_det.cost.budget and norton_det.cost.budget.Budget; a file norton_det/x.py")
    with pytest.raises(AssertionError):
        assert_names(text)
