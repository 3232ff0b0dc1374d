"""``--config``: a published row, or a file like one, gives defaults that the flags of the command line override."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from norton_det.cli.common import Parser, values_of
from norton_det.cli.numbers import Number, NumberError
from norton_det.cli.options import json_object, method_or_methods, rank_or_ranks, rate_or_auto
from norton_det.config import COMPRESSION, find_config, read_config
from norton_det.errors import DataError, shown, similar

_FIELDS = ("dataset", *COMPRESSION)
"""Fields of a config that are flags of the same names; ``arch`` is ``--arch`` or ``--model``."""
_OF_A_RUN = ("dist_url", "output_dir", "overwrite", "reset_schedule", "resume", "start_epoch", "test_only")
"""Flags that a recipe, which may be a stranger's, does not have: what is written where, and over what."""
_EXPECTED: dict[Callable[[str], Any] | None, str] = {
    int: "a whole number",
    float: "a number",
    json_object: "a mapping",
    rank_or_ranks: "a rank like 2, or one for each layer as [2]*9+[3]*18",
    rate_or_auto: "a number or auto",
}


def add_config(parser: Parser, *, recipe: bool = False) -> None:
    """Add ``--config``.

    Args:
        parser: of the command.
        recipe: the command trains: the config's recipe gives defaults as well.
    """
    parser.takes_recipe = recipe
    parser.add_argument_group("config").add_argument(
        "--config", metavar="NAME|FILE", help="published row (resnet56_73m) or file that gives defaults; flags override"
    )


def parse_arguments(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command's arguments, with the defaults of ``--config`` where the command has it.

    A required flag may come from the config.

    Raises:
        UsageError: wrong arguments.
        DataError: the config is damaged, or has a value that its flag does not take; the message names the file, the
            field, the value and what was expected.
    """
    if not any(action.dest == "config" for action in parser._actions):
        return parser.parse_args(argv)
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    name = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0].config
    defaults = {} if name is None else _defaults(parser, name)
    for action in required:
        action.required = action.dest not in defaults
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


def _defaults(parser: Parser, name: str) -> dict[str, Any]:
    """Return the defaults that a config gives, by the names under which the parser keeps its arguments."""
    path, config = find_config(name), read_config(name)
    flags = _flags(parser)
    values = {"arch": config.arch, "model": config.arch, **{field: getattr(config, field) for field in _FIELDS}}
    defaults = {
        field: _converted(flags[field], value, f"{path}: {'arch' if field == 'model' else field}")
        for field, value in values.items()
        if field in flags and value is not None
    }
    for field, value in config.recipe.items() if parser.takes_recipe else ():
        if field not in flags:
            hint = similar(field, flags)
            raise DataError(f"{config.recipe_file}: recipe has {shown(field)}, which is no flag of {parser.prog}{hint}")
        if flags[field].dest in _OF_A_RUN:
            text = f"recipe has {field!r}, which only the command line may say"
            raise DataError(f"{config.recipe_file}: {text}")
        defaults[flags[field].dest] = _converted(flags[field], value, f"{config.recipe_file}: recipe field {field}")
    return defaults


def _flags(parser: Parser) -> dict[str, argparse.Action]:
    """Return the flags that a file may give, by their names with underscores."""
    actions = [action for action in parser._actions if action.dest not in ("help", "config")]
    return {
        name.lstrip("-").replace("-", "_"): action
        for action in actions
        for name in (*action.option_strings, action.dest)
    }


def _converted(action: argparse.Action, value: Any, where: str) -> Any:
    """Return a value of a file as its flag takes it from the command line: its type, number of values and choices."""
    if value is None and action.default is None:
        return None
    try:
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if action.nargs is None:
            return _single(action, value)
        if not isinstance(value, list) or not value:
            raise ValueError
        return [_single(action, item) for item in value]
    except NumberError as error:
        expected = str(error) if action.nargs is None else f"a list, each value {error}"
        raise DataError(f"{where} is {shown(value)}; expected {expected}") from None
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise DataError(f"{where} is {shown(value)}; expected {_expected(action)}") from None


def _single(action: argparse.Action, value: Any) -> Any:
    read: Any = action.type
    if isinstance(value, Mapping) and read in (json_object, rank_or_ranks, method_or_methods):
        value = json.dumps(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and read is not None:
        value = str(value)
    if not isinstance(value, str):
        raise TypeError
    converted = value if read is None else read(value)
    if action.choices is not None and any(one not in action.choices for one in values_of(converted)):
        raise ValueError
    return converted


def _expected(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "true or false"
    read: Any = action.type
    if isinstance(read, Number):
        return ("" if action.nargs is None else "a list, each value ") + read.what
    one = f"one of: {', '.join(action.choices)}" if action.choices is not None else _EXPECTED.get(read, "a text")
    return one if action.nargs is None else f"a list, each value {one}"
