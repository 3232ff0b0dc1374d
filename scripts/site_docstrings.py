"""What the documentation site changes in docstrings: an "Example:" is a section of its own, and names are code."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|attr|data|mod):(?=`)")


class Docstrings(griffe.Extension):
    """An extension of griffe, which reads the docstrings for the site."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object; called by griffe."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub("Examples:", _ROLE.sub("", obj.docstring.value))
