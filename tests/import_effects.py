"""Import modules and print what importing them does: import_effects.py FOLDER MODULE...

An effect is an audited event (a file that is opened, a folder that is made, a process, a socket, a variable of the
environment) or output, that the top level of a module below FOLDER causes itself. Printed is a JSON list of texts.
"""

import importlib
import io
import json
import sys
from pathlib import Path

EVENTS = ("open", "os.", "shutil.", "tempfile.", "subprocess.", "socket.", "urllib.", "output")
# What looking for modules and reading the clock's time zone does as well.
HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk")


class Output(io.TextIOBase):
    """A stream whose text is an audited event."""

    def write(self, text: str) -> int:
        sys.audit("output", text)
        return len(text)


def culprit(folder: str) -> str | None:
    """Return the module below a folder whose top level is running, unless it imports something at the moment."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return None
        if frame.f_code.co_name == "<module>":
            ours = file.startswith(folder) and "site-packages" not in file
            return file.removeprefix(folder) if ours else None
        frame = frame.f_back
    return None


if __name__ == "__main__":
    folder, names = str(Path(sys.argv[1]).resolve()) + "/", sys.argv[2:]
    effects: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(EVENTS) and event not in HARMLESS and (module := culprit(folder)) is not None:
            effects.append(f"{module}: {event} {arguments[0]}")

    sys.path.insert(0, folder)
    sys.addaudithook(watch)
    shown, sys.stdout, sys.stderr = sys.stdout, Output(), Output()
    for name in names:
        importlib.import_module(name)
    sys.stdout = shown
    shown.write(json.dumps(effects))
