"""Write the lowest versions that pyproject.toml allows as a constraints file for pip.

Example:
  python scripts/lowest_versions.py > constraints.txt && pip install --constraint constraints.txt .
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?\s*(>=\s*(?P<version>[\w.]+))?")


def lowest_versions(project: dict[str, Any]) -> dict[str, str]:
    """Return the lowest version of each dependency, those of the optional groups included.

    Args:
        project: the table ``project`` of a pyproject.toml.

    Raises:
        ValueError: a dependency of the package itself has no lower bound, or a bound of another form than ``>=``.
    """
    required = project["dependencies"]
    if unbounded := [text for text in required if not _lowest([text])]:
        raise ValueError(f"{unbounded[0]!r} in project.dependencies has no lower bound; expected one as in torch>=2.10")
    optional = (text for group in project.get("optional-dependencies", {}).values() for text in group)
    return _lowest([*required, *optional])


def _lowest(requirements: Iterable[str]) -> dict[str, str]:
    matches = [(text, _REQUIREMENT.fullmatch(text)) for text in requirements]
    if wrong := [text for text, match in matches if match is None]:
        raise ValueError(f"{wrong[0]!r} in pyproject.toml: expected a name, or a name and a bound as in torch>=2.10")
    return {match["name"]: match["version"] for _, match in matches if match and match["version"]}


def main() -> None:
    """Print a line ``name==version`` for each dependency."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest_versions(project).items())


if __name__ == "__main__":
    main()
