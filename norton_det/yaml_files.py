"""YAML files of strangers: plain values, within limits that a file written by a person never reaches."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from norton_det.errors import DataError
from norton_det.storage import is_file

if TYPE_CHECKING:
    import yaml

MOST_BYTES, MOST_LEVELS, BYTES_PER_VALUE = 100_000, 20, 10
"""Limits of a file: its size, how deep its values are nested, and how many there are of it, aliases replaced."""


def read_yaml(path: str | Path, expected: str, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    r"""Return the mapping in a YAML file.

    Dates stay texts. A key that comes twice, and aliases that refer to themselves or that make many values of few, are
    refused.

    Args:
        path: the file, in UTF-8.
        expected: what it should be, for the messages ("a config").
        most_bytes: limit of its size.

    Raises:
        DataError: the file is missing, no YAML, beyond a limit, or no mapping with texts as keys.

    Example:
        >>> import tempfile
        >>> from norton_det.yaml_files import read_yaml
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.yaml")
        ...     _ = path.write_text("rank: 2\nsince: 2026-01-31\n")
        ...     read_yaml(path, "a config")
        {'rank': 2, 'since': '2026-01-31'}
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected {expected}")
    size = path.stat().st_size
    if size > most_bytes:
        raise DataError(f"{path}: has {size:,} bytes; expected {expected}, at most {most_bytes:,}")
    try:
        values = _plain_values(path.read_text(encoding="utf-8"), most_bytes // BYTES_PER_VALUE)
    except (OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read: {error}; expected {expected}") from None
    except Exception as error:  # values like 0o9 or !!bool x raise whatever their constructors do
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected {expected}: fields with values")
    return values


def _plain_values(text: str, most: int) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows no dates: months like 13 raise errors, and no field is a date."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    _check_depth(yaml.parse(text, Loader))
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, most, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(events: Any) -> None:
    """Check how deep values are nested, before anything is called once for each level.

    Raises:
        ValueError: too deep.
    """
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith(("MappingStartEvent", "SequenceStartEvent"))
        depth -= name.endswith(("MappingEndEvent", "SequenceEndEvent"))
        if depth > MOST_LEVELS:
            raise ValueError(f"line {event.start_mark.line + 1}: more than {MOST_LEVELS} levels")


def _count(node: "yaml.Node", most: int, counted: dict[int, int]) -> int:
    """Return the number of values in a node, those of aliases each time.

    Args:
        node: of the graph that the file describes.
        most: that number may be.
        counted: the numbers of nodes that are counted, 0 while that is done.

    Raises:
        ValueError: there are too many, a node holds itself, or a key comes twice.
    """
    line = f"line {node.start_mark.line + 1}"
    if id(node) in counted:
        if not counted[id(node)]:
            raise ValueError(f"{line}: an alias refers to what it is in")
        return counted[id(node)]
    counted[id(node)] = 0
    children: list[Any] = node.value if isinstance(node.value, list) else []
    keys = [child[0] for child in children if isinstance(child, tuple)]
    names: set[tuple[str, str]] = set()
    for key in keys:
        name = (key.tag, str(key.value))
        if name in names and not key.tag.endswith(":merge"):
            raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} comes twice")
        names.add(name)
    parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
    number = 1
    for part in parts:
        number += _count(part, most, counted)
        if number > most:
            raise ValueError(f"{line}: more than {most:,} values")
    counted[id(node)] = number
    return number
