"""The two ways in which input can be wrong, and the orderly end of a run; each has its exit code (see ``cli``)."""


class UsageError(ValueError):
    """An argument is wrong: an unknown name, a malformed rate list, a rank of 0."""


class DataError(ValueError):
    """A file is wrong: missing, truncated, of a foreign format, or not what another file expects."""


class TerminatedError(Exception):
    """SIGTERM came; what was done is saved, and the message tells how to go on."""
