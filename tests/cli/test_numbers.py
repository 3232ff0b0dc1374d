"""Numbers on the command line: every option knows its range, and says it."""

import argparse
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.cli.main import COMMANDS, parser_of
from norton_det.cli.numbers import Number, NumberError
from norton_det.cli.options import parse_configuration, rank_or_ranks
from norton_det.errors import UsageError

NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "", "x", "²", "\x1b[31m", "9" * 5000, "-" + "9" * 5000, "0x10")


def numbers_of(command: str) -> dict[str, Number]:
    """Return the types of a command's options that take numbers."""
    return {
        max(action.option_strings, key=len): action.type
        for action in parser_of(command)._actions
        if isinstance(action.type, Number)
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_a_range(command: str) -> None:
    plain = [action.option_strings for action in parser_of(command)._actions if action.type in (int, float, complex)]
    assert plain == [], "a plain int or float takes what is out of range; expected a type of cli/numbers.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_out_of_range_is_refused_by_name(command: str) -> None:
    parser = parser_of(command)
    for option, kind in numbers_of(command).items():
        assert -math.inf < kind.least < kind.most < math.inf
        above, below = kind.most + max(1, kind.most * 1e-6), kind.least - 1
        beyond = [f"{kind.kind(value)}" for value in (above, below, -1e30, 1e30)]
        beyond += ["0"] if kind.above and kind.least == 0 else []
        beyond += ["0.5", "1e3", "1.0"] if kind.kind is int else []
        for text in (*beyond, *NO_NUMBERS):
            with pytest.raises(UsageError) as caught:
                parser.parse_args([f"{option}={text}"])
            message = str(caught.value)
            assert message.startswith(f"{option} is {repr(text)[1:-1][:150]}")
            assert "; expected a" in message
            assert message.isprintable()
            assert len(message) < 300


@given(st.floats() | st.integers(), st.sampled_from(sorted({*map(str, COMMANDS)})), st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_taken_is_within_the_range(value: float, command: str, data: st.DataObject) -> None:
    kinds = numbers_of(command)
    if not kinds:
        return
    kind = kinds[data.draw(st.sampled_from(sorted(kinds)))]
    try:
        taken = kind(str(value))
    except NumberError:
        assert not (kind.least < value < kind.most) or kind.kind is int
    else:
        assert kind.least <= taken <= kind.most
        assert type(taken) is kind.kind
        assert taken == value


@pytest.mark.parametrize("text", [*NO_NUMBERS, "-1", "1.5"])
def test_a_rank_is_a_number_or_ranks(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no rank; expected a number"):
        rank_or_ranks(text)
    with pytest.raises(UsageError, match=r"^configuration '.*': expected a rank"):
        parse_configuration(text, "resnet56_cifar")
