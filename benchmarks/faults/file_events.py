"""The file events of a process in a folder: counted, and something else happens at one of them."""

import builtins
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OF_A_PATH = ("open", "replace", "rename", "unlink", "link", "chmod", "mkdir", "rmdir", "truncate")
_OF_A_HANDLE = ("fsync",)


class FileEvents:
    """Wraps the functions by which Python changes files.

    Args:
        folder: events of files elsewhere are not counted, but for what is synced.
        at: number of the event, from 0.
        act: called before that event with its name.
    """

    def __init__(self, folder: Path, at: int, act: Callable[[str], object]) -> None:
        self.folder, self.at, self.act = str(folder), at, act
        self.count = 0

    def install(self) -> None:
        """Wrap the functions in this process."""
        for name in (*_OF_A_PATH, *_OF_A_HANDLE):
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        opening = self._wrapped("open a file", io.open, writing=True)
        io.open = builtins.open = opening

    def _wrapped(self, name: str, function: Callable[..., Any], *, writing: bool = False) -> Callable[..., Any]:
        def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
            within = name in _OF_A_HANDLE or str(first).startswith(self.folder)
            mode = str(kwargs.get("mode", args[0] if args else "r")) if writing else "w"
            if within and set(mode) & set("wax+"):
                self._happens(name)
            return function(first, *args, **kwargs)

        return wrapped

    def _happens(self, name: str) -> None:
        self.count += 1
        if self.count == self.at + 1:
            self.act(name)
