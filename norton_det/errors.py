"""The errors of the package, and the checks that raise them."""

from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import category

MOST_LETTERS = 200
"""Of a value in a message."""
_SPACE = "Zs"
"""Unicode's category of spaces of any width, which Python does not print."""


class _InputError(ValueError):
    """The message is one line without control codes, whatever names of files and values of strangers it quotes."""

    def __init__(self, message: object = "") -> None:
        # One of a data-loading process comes with that process's traceback before it.
        own = str(message).rpartition(f"\n{type(self).__module__}.{type(self).__name__}: ")[2]
        super().__init__(printable(own.strip()))


class UsageError(_InputError):
    """An argument is wrong: an unknown name, a malformed list of rates, a rank of 0. Exit code of a command: 2."""


class DataError(_InputError):
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


class NonFiniteLossError(RuntimeError):
    """The loss is infinite or NaN. The message has the loss terms and the images of the batch. Exit code: 1."""


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
        raise DataError(f"{where} is {shown(value)}; expected {expected}")


def shown(value: object) -> str:
    """Return a value as a message shows it, in one line: what is longer than 200 letters is cut.

    Example:
        >>> from norton_det.errors import shown
        >>> shown([1, "a"])
        "[1, 'a']"
        >>> len(shown("a" * 1000))
        200
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply, or with a number of very many digits
        text = f"{type(value).__name__} that is too large to be shown"
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."


def printable(text: str, keep: str = "") -> str:
    r"""Return a text without control codes, which a terminal would obey: they are written as Python writes them.

    Args:
        text: such as the name of a file or class, which may have any letters.
        keep: codes that are left, such as the ends of the lines of a table.

    Example:
        >>> from norton_det.errors import printable
        >>> printable("\x1b[31mcat\n")
        '\\x1b[31mcat\\n'
    """
    if text.isprintable():
        return text
    shown = (x.isprintable() or x in keep or category(x) == _SPACE for x in text)
    return "".join(x if plain else ascii(x)[1:-1] for x, plain in zip(text, shown, strict=True))


def one_line(error: BaseException) -> str:
    r"""Return what an error of another package says, in one line that shows no control codes.

    Example:
        >>> from norton_det.errors import one_line
        >>> one_line(ValueError("no\n\x1b[31mnumber")), one_line(MemoryError())
        ('no \\x1b[31mnumber', 'MemoryError')
    """
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."


def similar(name: object, choices: Iterable[str]) -> str:
    """Return a hint for an unknown name: the choice that it may have been meant to be; else an empty text.

    Example:
        >>> from norton_det.errors import similar
        >>> similar("rnak", ["rank", "rates"])
        " (did you mean 'rank'?)"
        >>> similar("seed", ["rank", "rates"])
        ''
    """
    found = get_close_matches(name, list(choices), n=1) if isinstance(name, str) and len(name) <= MOST_LETTERS else []
    return f" (did you mean {found[0]!r}?)" if found else ""


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
