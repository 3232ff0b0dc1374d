"""Log lines: on a terminal they do not disturb progress bars; those of a run are kept in a file as well."""

import logging
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from norton_det.errors import TerminatedError, printable
from norton_det.file_locks import open_own

_OURS = ("norton_det", "benchmarks", "scripts")


class _Printable(logging.Formatter):
    """Escapes control codes in lines: names of files and classes may have them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


class _BesideBars(logging.StreamHandler[TextIO]):
    """Writes lines above the progress bars of a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception as error:
            if isinstance(error.__context__, TerminatedError):  # it came as tqdm took its lock
                raise error.__context__ from None
            self.handleError(record)


def show_log() -> None:
    """Show the package's log on stderr; of other packages only warnings and errors."""
    shown = _BesideBars(sys.stderr)
    shown.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[shown])
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def hide_warnings() -> None:
    """Hide Python's warnings, which other packages address to programmers, unless ``python -W`` asks for them."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


class RunLog(logging.Handler):
    """Keeps what is logged until it is given a file, and writes it there, each line with its time.

    Example:
        >>> import logging, tempfile
        >>> from pathlib import Path
        >>> from norton_det.runtime.logs import RunLog
        >>> log = RunLog()
        >>> line = logging.makeLogRecord({"msg": "Start"})
        >>> log.emit(line)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log.open(Path(folder) / "log.txt")
        ...     log.close()
        ...     (Path(folder) / "log.txt").read_text().split()[-1]
        'Start'
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Printable("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._held: list[logging.LogRecord] = []
        self._file: TextIO | None = None
        self.closed = False

    def open(self, path: Path) -> None:
        """Append to a file, beginning with what was kept."""
        self._file = open(path, "a", encoding="utf-8", opener=open_own)  # noqa: SIM115
        held, self._held = self._held, []
        for record in held:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it."""
        if self._file is None:
            self._held += [] if self.closed else [record]
            return
        try:
            self._file.write(f"{self.format(record)}\n")
            self._file.flush()
        except OSError as error:  # the run goes on as long as its checkpoints can be written
            sys.stderr.write(f"{self._file.name}: {error.strerror}; the log goes on without this file\n")
            self.close()
        except Exception:
            self.handleError(record)

    def note(self, text: str, **fields: Any) -> None:
        """Write a line to the file alone; ``fields`` are those of a log record."""
        self.emit(logging.makeLogRecord({"msg": text, **fields}))

    def close(self) -> None:
        """Close the file."""
        file, self._file, self.closed = self._file, None, True
        if file is not None:
            with suppress(OSError):  # what could not be written
                file.close()
        super().close()
