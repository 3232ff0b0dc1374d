"""Configs: one YAML file per published row and per row of ours, read into a frozen dataclass.

A config is data: which network, how it is compressed, the recipe of its fine-tuning as flags of the training commands,
and what was published or, of a row of ours, what we found.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from norton_det.data.coco.layouts import KINDS
from norton_det.data.image_datasets import DATASETS
from norton_det.decompositions import DECOMPOSITIONS
from norton_det.errors import DataError, UsageError, expect, shown, similar
from norton_det.files import write_text
from norton_det.pruning import CRITERIA
from norton_det.spec import Rank, Spec, is_rank
from norton_det.storage import is_file
from norton_det.structure.settings import Methods, Ranks, spec_from_configuration
from norton_det.yaml_files import read_yaml

SUFFIXES = (".yaml", ".yml")
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "arch": ((str,), "the name of an architecture"),
    "dataset": ((str,), "the name of a data set"),
    "rank": ((int, str, Mapping), "a whole number, or one for each layer as [2]*9+[3]*18, or by name"),
    "rates": ((str,), "pruning rates as [0.]+[0.1]*2"),
    "criterion": ((str,), "the name of a criterion"),
    "decomposition": ((str, Mapping), "the name of a decomposition, or of each layer's"),
    "scope": ((str,), "the name of a scope"),
    "round_to": ((int,), "a whole number"),
    "reconstructed": ((str,), "a text"),
    "recipe": ((Mapping, str), "flags with their values, or the file that has them"),
    "published": ((Mapping,), "metrics with their values"),
    "ours": ((Mapping,), "metrics with their values"),
}
_REQUIRED = ("arch", "dataset")
COMPRESSION = ("rank", "rates", "criterion", "decomposition", "scope", "round_to")
"""Fields that are arguments of :func:`norton_det.compress`."""


@dataclass(frozen=True)
class Config:
    """One row of a table of results.

    Attributes:
        arch: registered name of the architecture.
        dataset: name of the data set of the row: cifar10, imagenet, coco or coco_kp.
        rank: of every k x k convolution, of each as text ("[2]*9+[3]*18"), or by layer, ``*`` in a name standing for
            anything; None decomposes nothing.
        rates: the fraction of the filters that is removed, in the publication's notation; None prunes nothing.
        criterion: which filters are kept.
        decomposition: registered name, or by layer, under the names of the ranks.
        scope: what rank and rates are of: "backbone" or "detector"; None is the architecture's default.
        round_to: multiple to which widths and ranks are rounded down.
        recipe: the fine-tuning: values of the training command's flags, by their names with underscores. In the file it
            may be the name of another one, relative to it, that holds them: rows share a recipe.
        published: what was published: ``top1`` or ``AP`` and so on, and ``macs`` and ``params`` as printed ("0.92G").
        ours: the same of a row that is ours, and was not published.
        reconstructed: where rank and rates come from if not from matching the published row exactly.
        recipe_file: the file from which the recipe was read, for messages.

    Example:
        >>> from norton_det.config import read_config
        >>> config = read_config("resnet56_73m")
        >>> config.arch, config.rank, config.published["top1"]
        ('resnet56_cifar', 7, 94.0)
    """

    arch: str
    dataset: str
    rank: Ranks | None = None
    rates: str | None = None
    criterion: str = "pabs"
    decomposition: Methods = "cp"
    scope: str | None = None
    round_to: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    ours: Mapping[str, Any] = field(default_factory=dict)
    reconstructed: str | None = None
    recipe_file: Path | None = field(default=None, repr=False, compare=False)

    def spec(self) -> Spec:
        """Return the spec of the config's network, without its weights.

        Raises:
            UsageError: an unknown architecture, a wrong rank or rate.
        """
        return spec_from_configuration(
            self.arch,
            self.rank,
            self.rates,
            decomposition=self.decomposition,
            scope=self.scope,
            round_to=self.round_to,
        )


def config_files() -> dict[str, Path]:
    """Return the files of the published rows, by the names that ``--config`` takes: those of the files without suffix.

    They are in the package; in a checkout that is a link to the folder ``configs/`` at the top.
    """
    folder = (Path(__file__).parent / "configs").resolve()
    return {path.stem: path for path in sorted(folder.glob("*/*.yaml"))}


def names_config(text: str) -> bool:
    """Return whether a command's argument is a config: a YAML file, or the name of a published row."""
    return Path(text).suffix in SUFFIXES or text in config_files()


def find_config(name: str | Path) -> Path:
    """Return the file of a config: ``name`` itself if it is a path, or that of a published row.

    Raises:
        UsageError: an unknown name; the message lists the known ones.
    """
    path = Path(name)
    if is_file(path) or path.suffix in SUFFIXES or path.name != str(name):
        return path
    files = config_files()
    if str(name) not in files:
        raise UsageError(f"unknown config {str(name)!r}; expected a .yaml file or one of: {', '.join(files)}")
    return files[str(name)]


def read_config(name: str | Path) -> Config:
    """Read a config.

    Args:
        name: its file, or the name of a published row ("resnet56_73m").

    Raises:
        UsageError: an unknown name.
        DataError: the file is missing, no YAML, or a field is unknown, missing or wrong; the message names it.
    """
    path = find_config(name)
    values = read_yaml(path, "a config")
    for key, value in values.items():
        if key not in _FIELDS:
            text = f"{path}: unknown field {shown(key)}; expected one of: {', '.join(_FIELDS)}"
            raise DataError(text + similar(key, _FIELDS))
        types, expected = _FIELDS[key]
        expect(isinstance(value, types) and not isinstance(value, bool), f"{path}: {key}", value, expected)
    for key in _REQUIRED:
        if key not in values:
            raise DataError(f"{path}: lacks the field {key}")
    recipe_file = path
    if isinstance(values.get("recipe"), str):
        expect(Path(values["recipe"]).suffix in SUFFIXES, f"{path}: recipe", values["recipe"], "a .yaml file")
        recipe_file = path.parent / values["recipe"]
        values["recipe"] = read_yaml(recipe_file, "the recipe")
    for key in ("published", "ours"):
        _check_metrics(values.get(key, {}), f"{path}: {key}")
    if isinstance(values.get("rank"), Mapping):
        values["rank"] = ranks_by_layer(values["rank"], f"{path}: rank")
    config = Config(**values, recipe_file=recipe_file)
    _check_names(config, path)
    try:
        config.spec()
    except UsageError as error:
        raise DataError(f"{path}: {error}") from None
    return config


def _check_metrics(values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
        expect(isinstance(name, str) and (number or isinstance(value, str)), f"{where}: {name}", value, "a number")


def _check_names(config: Config, path: Path) -> None:
    names: dict[str, Iterable[str]] = {"criterion": CRITERIA, "decomposition": DECOMPOSITIONS}
    for key, choices in {**names, "dataset": (*DATASETS, *KINDS)}.items():
        value = getattr(config, key)
        for one in value.values() if isinstance(value, Mapping) else [value]:
            expect(one in list(choices), f"{path}: {key}", one, f"one of: {', '.join(choices)}")


def ranks_by_layer(values: Mapping[Any, Any], where: str) -> dict[str, Rank]:
    """Return ranks by layer as a file has them: a whole number, or a list of two.

    Raises:
        DataError: a name is no text, or a rank none.
    """
    ranks = {name: tuple(rank) if isinstance(rank, list) else rank for name, rank in values.items()}
    for name, rank in ranks.items():
        expect(isinstance(name, str), f"{where}: the name of a layer", name, "a text")
        expect(is_rank(rank), f"{where} of {name}", values[name], "a whole number of at least 1, or two of them")
    return ranks


def write_config(config: Config, path: str | Path) -> None:
    """Write a config as :func:`read_config` reads it, without the fields that have their default."""
    import yaml

    empty = Config(config.arch, config.dataset)
    values = {key: getattr(config, key) for key in _FIELDS}
    values = {key: value for key, value in values.items() if key in _REQUIRED or value != getattr(empty, key)}
    write_text(path, yaml.safe_dump(values, sort_keys=False, width=1000))
