"""What every command shares: the parser and its help, one-line errors, exit codes."""

import argparse
import errno
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

from norton_det.cli.numbers import NumberError
from norton_det.errors import DataError, NonFiniteLossError, TerminatedError, UsageError, one_line, printable, shown
from norton_det.runtime.distributed import LostProcessError
from norton_det.runtime.logs import hide_warnings, show_log
from norton_det.runtime.malloc import keep_freed_memory
from norton_det.runtime.signals import end_at_signals

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_DATA, EXIT_UNWRITTEN = 0, 1, 2, 3, 4
EXIT_TERMINATED, EXIT_INTERRUPTED = 143, 130  # what a shell reports of a process that SIGTERM or SIGINT ended
EXIT_UNREAD = 141  # what a shell reports of a process that SIGPIPE ended
EXIT_AGAIN = 75  # after SIGUSR1: that of a temporary failure, for schedulers that start the job again
_EXIT_OF = {"SIGTERM": EXIT_TERMINATED, "SIGINT": EXIT_INTERRUPTED, "SIGUSR1": EXIT_AGAIN}

_UNWRITTEN = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ESTALE),
}
"""Of the system's errors, those of a path that cannot be written."""
_NOTHING = (None, "", argparse.SUPPRESS)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the choices of an argument and, of an option that takes a value, the default: "none" if nothing is said."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, mark, default = (action.help or "").partition(" (default: ")
        if action.choices is not None and action.metavar is not None:
            text += f": {', '.join(map(str, action.choices))}"
        if not mark and action.option_strings and action.nargs != 0 and not action.required:
            values = action.default if isinstance(action.default, list) else [action.default]
            words = "none" if any(action.default is value for value in _NOTHING) else " ".join(map(str, values))
            mark, default = " (default: ", f"{words})"
        return text + mark + default


def values_of(value: Any) -> list[Any]:
    """Return what is to be one of an argument's choices: the value, or the values of a mapping."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help shows choices and defaults.

    Attributes:
        takes_recipe: whether the recipe of ``--config`` gives defaults as well (see ``config_defaults``).
    """

    takes_recipe = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UsageError(message)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # Two spellings of one option do not make an abbreviation ambiguous.
        matches = super()._get_option_tuples(option_string)
        return list({id(match[0]): match for match in matches}.values())

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except NumberError as error:
            name = max(action.option_strings, key=len, default=action.dest)
            raise UsageError(f"{name} is {shown(arg_string)[1:-1]}; expected {error}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [] if action.choices is None else list(action.choices)
        for one in values_of(value) if choices else []:
            if one not in choices:
                expected = ", ".join(map(str, choices))
                raise argparse.ArgumentError(action, f"{one!r} is unknown; expected one of: {expected}")


def _is_lack_of_memory(error: Exception) -> bool:
    """Tell whether memory could not be had; torch raises a class of its own on a GPU and RuntimeError on the CPU."""
    out = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or out


def _flush() -> None:
    """Print what is left; that nobody reads it is no failure of what was done."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    """Let what is still printed go nowhere: Python would raise the error again at the exit."""
    with suppress(OSError, ValueError):  # a stream of Python's own, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(run: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """Make a ``main`` that returns the exit code; wrong arguments and wrong data are reported in one line.

    The process keeps the memory that it frees (see :func:`keep_freed_memory`). Without arguments they are those of the
    process: in it, warnings of other packages are hidden, signals end it with what was begun cleaned up, and what was
    imported is left out of garbage collection, for which walking through torch's million objects takes longer than many
    a command.
    Other errors are raised as they are (exit code 1 and a traceback when run as a script).
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        show_log()
        keep_freed_memory()
        if argv is None:  # a process of its own
            hide_warnings()
            gc.freeze()
        try:
            with end_at_signals() if argv is None else nullcontext():
                run(sys.argv[1:] if argv is None else argv)
            if argv is None:
                _flush()
        except (UsageError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE if isinstance(error, UsageError) else EXIT_DATA
        except BrokenPipeError:  # nobody reads what is printed, as in "| head"
            _drop_output()
            return EXIT_UNREAD
        except OSError as error:
            if error.errno not in _UNWRITTEN:
                raise
            path = "output" if error.filename is None else shown(os.fsdecode(error.filename))[1:-1]
            print(f"error: {path}: {error.strerror}; expected a path that can be written", file=sys.stderr)
            return EXIT_UNWRITTEN
        except (LostProcessError, NonFiniteLossError) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return EXIT_FAILED
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            print(f"error: not enough memory: {one_line(error)}", file=sys.stderr)
            return EXIT_FAILED
        except TerminatedError as error:
            print(f"terminated: {printable(str(error))}", file=sys.stderr)
            return _EXIT_OF[signal.Signals(error.signal).name]
        return EXIT_DONE

    return main
