"""The two ways in which input can be wrong.

Both are ``ValueError``; the tools turn them into exit codes (see :mod:`norton_det.cli`).
"""


class UsageError(ValueError):
    """An argument is wrong: an unknown name, a malformed rate list, a rank of 0."""


class DataError(ValueError):
    """A file is wrong: missing, truncated, of a foreign format, or not what another file expects."""
