"""What the tools share: one-line errors, exit codes, log lines, tables."""

import argparse
import functools
import json
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch

from norton_det.config import Config, read_config
from norton_det.errors import DataError, TerminatedError, UsageError
from norton_det.runtime.malloc import keep_freed_memory
from norton_det.spec import parse_ranks

logger = logging.getLogger(__name__)

_SETTING = ("arch", "dataset", "rank", "rates", "criterion", "decomposition")
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_DATA = 0, 1, 2, 3
EXIT_TERMINATED = 143  # what a shell reports of a process that SIGTERM ended


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UsageError(message)


def command(run: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Make a tool's ``main``: it returns the exit code; wrong arguments and wrong data are told in one line.

    The process keeps the memory that it frees (see :func:`keep_freed_memory`).
    Other errors are raised as they are (exit code 1 and a traceback when run as a script).
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        keep_freed_memory()
        try:
            run(sys.argv[1:] if argv is None else argv)
        except (UsageError, DataError) as error:
            # One that comes from a data-loading process carries its traceback: the last line is what it says.
            message = (
                str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
            )
            print(f"error: {message}", file=sys.stderr)  # a tool's own words
            return EXIT_USAGE if isinstance(error, UsageError) else EXIT_DATA
        except TerminatedError as error:
            print(f"terminated: {error}", file=sys.stderr)
            return EXIT_TERMINATED
        return EXIT_DONE

    return main


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, recipe: bool = False
) -> tuple[argparse.Namespace, Config | None]:
    """Parse a tool's arguments; ``--config FILE`` gives defaults for those that it names, flags override them.

    Args:
        parser: of the tool; ``--config`` is added to it.
        argv: the command line.
        recipe: the tool trains: the config's recipe gives defaults as well.

    Returns:
        The arguments, and the config if one is named.

    Raises:
        UsageError: wrong arguments.
        DataError: the config is damaged, or its recipe names what is no flag of the tool.
    """
    parser.add_argument("--config", metavar="FILE", help="config that gives the defaults; flags override them")
    path = parser.parse_known_args(argv)[0].config
    config = None if path is None else read_config(path)
    if config is not None:
        flags = {action.dest for action in parser._actions}
        if recipe and (unknown := sorted(set(config.recipe) - flags)):
            raise DataError(f"{path}: recipe has {unknown[0]!r}, which is no flag of {parser.prog}")
        named = {name: getattr(config, name) for name in _SETTING}
        known = {name: value for name, value in {"model": config.arch, **named}.items() if name in flags}
        parser.set_defaults(**known, **(config.recipe if recipe else {}))
    return parser.parse_args(argv), config


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that an argument is; a ``type`` for ``add_argument``."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value


def parse_setting(text: str, arch: str) -> dict[str, Any]:
    """Return the options of :func:`norton_det.compress` that a setting is: "2", "7:[0.]+[0.18]*29" or a config's file.

    Raises:
        DataError: the file is missing or no config.
        UsageError: the text is neither, or the config is one of another architecture.
    """
    if text.endswith((".yaml", ".yml")):
        config = read_config(text)
        if config.arch != arch:
            raise UsageError(f"--settings {text}: is a setting of {config.arch}; expected one of {arch}")
        return {name: getattr(config, name) for name in ("rank", "rates", "criterion", "decomposition")}
    rank, _, rates = text.partition(":")
    if not (rank.isdigit() or rank.startswith("[")):
        raise UsageError(f"--settings {text!r}: expected a rank, a rank and rates as 7:[0.]+[0.18]*29, or a .yaml file")
    return {"rank": int(rank) or None if rank.isdigit() else rank, "rates": rates or None}


def rate_or_auto(text: str) -> float | str:
    """Return the learning rate that an argument is, or "auto"; a ``type`` for ``add_argument``."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def rank_or_ranks(text: str) -> int | str:
    """Return the rank that an argument is, or ranks like [2]*9+[3]*18 as text; a ``type`` for ``add_argument``."""
    if text.isdigit():
        return int(text)
    if not text.startswith("["):
        raise argparse.ArgumentTypeError(f"{text!r} is no rank; expected a number, or one a layer as [2]*9+[3]*18")
    try:
        parse_ranks(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def check_counts(args: argparse.Namespace, **least: int) -> None:
    """Check that the arguments of these names are not less than that.

    Raises:
        UsageError: one is.
    """
    for name, bound in least.items():
        if getattr(args, name) < bound:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected at least {bound}")


def tell_changes(args: argparse.Namespace, before: Mapping[str, Any], *, free: Collection[str]) -> None:
    """Warn of flags that make the rest of a training another one than it would have been.

    Args:
        args: of the run that goes on with ``--resume``.
        before: the arguments in the checkpoint.
        free: names that may change.
    """
    for name, value in vars(args).items():
        if name not in free and value != before.get(name):
            logger.warning("%s: was trained with %s %s, now %s", args.resume, name, before.get(name), value)


def check_device(device: str) -> None:
    """Check that tensors can be put on a device.

    Raises:
        UsageError: there is no such device.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"--device {device}: not available here; expected cpu") from None
