"""The command ``norton-det``: each of its sub-commands is a module of this folder.

Such a module has a docstring (description and examples), ``add_arguments(parser)`` and ``run(args)``. It is imported
when its command runs.
"""

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from norton_det import __version__
from norton_det.cli.common import Parser, command
from norton_det.cli.config_defaults import parse_arguments
from norton_det.errors import UsageError

COMMANDS = (
    "compress",
    "complexity",
    "search",
    "accuracy",
    "train-cls",
    "eval-cls",
    "train-det",
    "eval-det",
    "report",
    "visualize",
    "check-data",
    "make-shapes",
    "pareto",
    "benchmark",
    "export",
    "demo",
)
"""The sub-commands, in the order of the help."""


@command
def main(argv: Sequence[str]) -> None:
    """Run the sub-command that the first argument names, with the others."""
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"norton-det {__version__}")
    elif name in COMMANDS:
        args = parse_arguments(parser_of(name), argv[1:])
        args.command = ["norton-det", *argv]
        importlib.import_module(_module(name)).run(args)
    else:
        problem = f"unknown command {name!r}" if name else "no command"
        raise UsageError(f"{problem}; expected one of: {', '.join(COMMANDS)}")


def main_of(name: str) -> int:
    """Run a sub-command with the arguments of this process; return the exit code."""
    sys.argv.insert(1, name)
    return main()


def parser_of(name: str) -> Parser:
    """Return the parser of a sub-command."""
    module = importlib.import_module(_module(name))
    parser = Parser(prog=f"norton-det {name}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def _module(name: str) -> str:
    return f"norton_det.cli.{name.replace('-', '_')}"


def _overview() -> str:
    """Return the help: the first sentence of each sub-command's docstring, which is read without importing it."""
    lines = ["usage: norton-det [-h] [--version] COMMAND ...", "", "commands:"]
    lines += [f"  {name:12} {first_sentence(name)}" for name in COMMANDS]
    return "\n".join([*lines, "", "norton-det COMMAND --help shows the arguments of a command."])


def first_sentence(name: str) -> str:
    """Return what a sub-command does, from its docstring, which is read without importing it."""
    spec = find_spec(_module(name))
    assert spec is not None
    assert spec.origin is not None
    description = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return description.splitlines()[0]
