"""A small registry of named things, and the way into torchvision's."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from torchvision.models import _api

from norton_det.errors import UsageError, shown, similar

T = TypeVar("T")
BuilderT = TypeVar("BuilderT", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Items of one kind by name. Registering a name twice, or asking for an unknown one, is an error.

    Args:
        kind: what is registered, as messages call it ("criterion").

    Example:
        >>> shapes: Registry[int] = Registry("shape")
        >>> shapes.register("square", 4)
        4
        >>> shapes["square"], "circle" in shapes, list(shapes)
        (4, False, ['square'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add ``item`` under ``name`` and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._items[name] = item
        return item

    def check(self, name: str) -> None:
        """Check that ``name`` is registered.

        Raises:
            UsageError: it is not; the message lists the names.
        """
        if name not in self:
            text = f"unknown {self.kind} {shown(name)}; expected one of: {', '.join(self)}"
            raise UsageError(text + similar(name, self))

    def __getitem__(self, name: str) -> T:
        """Return the item registered under ``name``.

        Raises:
            UsageError: there is none; the message lists the names.
        """
        self.check(name)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        """Tell whether ``name`` is registered."""
        return isinstance(name, str) and name in self._items

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in alphabetical order."""
        return iter(sorted(self._items))


def torchvision_builder(function: BuilderT) -> BuilderT:
    """Make a builder known to ``torchvision.models.get_model`` and ``list_models`` under its own name.

    A builder of this package that is registered already is replaced, so that importing twice is harmless.

    Raises:
        ValueError: torchvision or another package has a model of that name.
    """
    registered = _api.BUILTIN_MODELS.get(function.__name__)
    if registered is not None and registered.__module__ == function.__module__:
        del _api.BUILTIN_MODELS[function.__name__]
    _api.register_model()(function)
    return function
