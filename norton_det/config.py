"""Configs: one YAML file per published row, read into a frozen dataclass.

A config is data: which network, how it is compressed, the recipe of its fine-tuning as flags of the training tools, and
what was published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from norton_det.errors import DataError, UsageError, expect
from norton_det.files import write_text
from norton_det.spec import Spec
from norton_det.structure.settings import spec_of_setting

_TYPES: dict[str, tuple[type, ...]] = {
    "arch": (str,),
    "dataset": (str,),
    "rank": (int, str),
    "rates": (str,),
    "criterion": (str,),
    "decomposition": (str,),
    "reconstructed": (str,),
    "recipe": (Mapping, str),
    "published": (Mapping,),
}
_REQUIRED = ("arch", "dataset")


@dataclass(frozen=True)
class Config:
    """One row of a table of results.

    Attributes:
        arch: registered name of the architecture.
        dataset: name of the data set that the row is about: cifar10, imagenet, coco or coco_kp.
        rank: of every k x k convolution, or of each as text ("[2]*9+[3]*18"); None decomposes nothing.
        rates: what share of the filters goes, in the publication's notation; None prunes nothing.
        criterion: which filters stay.
        decomposition: registered name.
        recipe: the fine-tuning: values of the training tool's flags, by their names with underscores. In the file it
            may be the name of another one, relative to it, that holds them: rows share a recipe.
        published: what was published: ``top1`` or ``AP`` and so on, and ``macs`` and ``params`` as printed ("0.92G").
        reconstructed: where rank and rates come from if not from matching the published row exactly.
    """

    arch: str
    dataset: str
    rank: int | str | None = None
    rates: str | None = None
    criterion: str = "pabs"
    decomposition: str = "cp"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    reconstructed: str | None = None

    def spec(self) -> Spec:
        """Return the spec of the config's network, without its weights.

        Raises:
            UsageError: an unknown architecture, a wrong rank or rate.
        """
        return spec_of_setting(self.arch, self.rank, self.rates, decomposition=self.decomposition)


def read_config(path: str | Path) -> Config:
    """Read a config.

    Raises:
        DataError: the file is missing, no YAML, or a field is unknown, missing or wrong; the message names it.
    """
    path = Path(path)
    values = _read_mapping(path, "a config")
    known = [f.name for f in fields(Config)]
    for name, value in values.items():
        if name not in known:
            raise DataError(f"{path}: unknown field {name!r}; expected one of: {', '.join(known)}")
        fits = isinstance(value, _TYPES[name]) and not isinstance(value, bool)
        expect(fits, f"{path}: {name}", value, f"a {_TYPES[name][0].__name__}")
    for name in _REQUIRED:
        if name not in values:
            raise DataError(f"{path}: lacks the field {name}")
    if isinstance(values.get("recipe"), str):
        values["recipe"] = _read_mapping(path.parent / values["recipe"], "the recipe")
    config = Config(**values)
    try:
        config.spec()
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    return config


def write_config(config: Config, path: str | Path) -> None:
    """Write a config as :func:`read_config` reads it, without the fields that have their default."""
    import yaml

    empty = Config(config.arch, config.dataset)
    values = {f.name: getattr(config, f.name) for f in fields(Config)}
    own = {name: value for name, value in values.items() if name in _REQUIRED or value != getattr(empty, name)}
    write_text(path, yaml.safe_dump(own, sort_keys=False, width=1000))


def _read_mapping(path: Path, what: str) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {what}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected {what}: fields with values")
    return values
