"""Every option of every command says what it does and what it is without it; a pipe of help imports little."""

import argparse
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT

from norton_det.cli.main import COMMANDS, parser_of

HEAVY = {"tensorly", "fvcore", "pycocotools", "matplotlib", "scipy", "av", "faster_coco_eval", "tensorboard", "sklearn"}


def problems(parser: argparse.ArgumentParser) -> list[str]:
    """Return what the help of a parser does not say."""
    formatter = parser._get_formatter()
    found = []
    for action in parser._actions:
        text = formatter._expand_help(action) if action.help else ""
        _, mark, default = text.partition(" (default: ")
        if not text.partition(" (default")[0].strip():
            found.append(f"{action.option_strings or action.dest}: no help")
        if not action.option_strings or action.required or action.nargs == 0:
            continue
        if not mark:
            found.append(f"{action.option_strings}: no default")
        values = action.default if isinstance(action.default, list) else [action.default]
        if not all(value in (None, "") or value is argparse.SUPPRESS or str(value) in default for value in values):
            found.append(f"{action.option_strings}: {default!r} for {action.default!r}")
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_its_default(name: str) -> None:
    assert problems(parser_of(name)) == []


def test_missing_help_and_wrong_defaults_are_found() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--silent", default=1)
    parser.add_argument("--undefined", default=2, help="text")
    parser.add_argument("--wrong", default=3, help="text (default: 4)")
    parser.add_argument("--right", default=3, help="text (default: 3)")
    parser.add_argument("--switch", action="store_true", help="text")
    parser.add_argument("file")
    found = problems(parser)
    assert {text.split(":")[0] for text in found} == {"['--silent']", "['--undefined']", "['--wrong']", "file"}
    assert {"['--silent']: no help", "['--undefined']: no default", "['--wrong']: '4)' for 3"} <= set(found)


def test_help_and_usage_errors_import_nothing_heavy() -> None:
    code = f"""
import sys
from norton_det.cli.main import COMMANDS, main
for name in COMMANDS:
    for words in (["--help"], ["--no-such-option"]):
        try:
            assert main([name, *words]) == 2
        except SystemExit as stop:
            assert stop.code == 0 and words == ["--help"]
print("imported:", sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"
    assert done.stdout.count("usage: norton-det ") >= len(COMMANDS)
