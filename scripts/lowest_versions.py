"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

Example:
  python scripts/lowest_versions.py > constraints.txt && pip install --constraint constraints.txt .
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,-]+\])?(?:\s*>=\s*([\w.]+))?")  # name, version


def lowest_versions(project: dict[str, Any]) -> dict[str, str]:
    """Return the lowest version of each dependency that has one, those of the optional groups included.

    Args:
        project: the table ``project`` of a pyproject.toml.

    Raises:
        ValueError: a dependency that is not optional has no lower bound; or a bound has another form than ``>=``.
    """
    required = dict(_parsed(text) for text in project["dependencies"])
    if unbounded := [name for name, version in required.items() if version is None]:
        raise ValueError(f"dependency {unbounded[0]!r} has no lower bound; expected one as in torch>=2.10")
    groups = project.get("optional-dependencies", {}).values()
    optional = dict(_parsed(text) for group in groups for text in group)
    return {name: version for name, version in {**required, **optional}.items() if version is not None}


def _parsed(requirement: str) -> tuple[str, str | None]:
    match = _REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise ValueError(f"dependency {requirement!r}: expected a name, or a name and a bound as in torch>=2.10")
    return match[1], match[2]


def main() -> None:
    """Print a line ``name==version`` for each dependency."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest_versions(project).items())


if __name__ == "__main__":
    main()
