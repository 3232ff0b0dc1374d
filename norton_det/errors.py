"""The errors of the package, and the checks that raise them."""

from collections.abc import Iterable


class UsageError(ValueError):
    """An argument is wrong: an unknown name, a malformed list of rates, a rank of 0. Exit code of a command: 2."""


class DataError(ValueError):
    """A file is wrong: missing, truncated, of another format, or not consistent with another one. Exit code: 3."""


class TerminatedError(BaseException):
    """A signal was received. The message says where work was saved. Exit code: 143, 130 or 75.

    It is no Exception, as KeyboardInterrupt is none: what goes on after errors must not go on after this.

    Attributes:
        signal: number of the signal: SIGTERM, SIGINT or SIGUSR1.
    """

    def __init__(self, message: str, signal: int = 15) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])


def expect(condition: bool, where: str, value: object, expected: str) -> None:
    """Check one field of data that was read from a file.

    Args:
        condition: what must hold.
        where: the field, with the file if it is known ("row 2: params").
        value: the value of the field.
        expected: a description of the values that are allowed ("a positive integer").

    Raises:
        DataError: the condition does not hold. The message has the field, the value and what was expected.

    Example:
        >>> from norton_det.errors import expect
        >>> expect(3 > 0, "params", 3, "a positive integer")
        >>> expect(0 > 0, "params", 0, "a positive integer")
        Traceback (most recent call last):
        norton_det.errors.DataError: params is 0; expected a positive integer
    """
    if not condition:
        raise DataError(f"{where} is {value!r}; expected {expected}")


def expect_choice(kind: str, name: object, choices: Iterable[str]) -> None:
    """Check an argument that is one of several names.

    Args:
        kind: what is chosen ("optimizer").
        name: the argument.
        choices: the names that are allowed.

    Raises:
        UsageError: an unknown name. The message lists the choices.

    Example:
        >>> from norton_det.errors import expect_choice
        >>> expect_choice("split", "dev", ("train", "val"))
        Traceback (most recent call last):
        norton_det.errors.UsageError: unknown split 'dev'; expected one of: train, val
    """
    choices = list(choices)
    if name not in choices:
        raise UsageError(f"unknown {kind} {name!r}; expected one of: {', '.join(choices)}")
