"""The folder of a training that is resumed: what it holds that is not of the checkpoint."""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from norton_det.errors import DataError
from norton_det.files import write_atomically
from norton_det.runtime.run_files import set_damaged_aside
from norton_det.runtime.run_folder import ARGUMENTS, BEST, METRICS, MOST_BYTES
from norton_det.training import TrainingState
from norton_det.training.history import best_of, lines_in
from norton_det.yaml_files import read_yaml

logger = logging.getLogger(__name__)

RESUMED = "resumed"
"""Key of ``args.yaml``: what a run was resumed with, each time."""
_DATA = {"images": "the data of", "objects": "the data of", "sha256": "the annotation file of"}
"""What a run is not to be resumed with others of, without a word."""


def copy_beginning(source: Path, folder: Path) -> None:
    """Copy the metrics, the best network and ``args.yaml`` of a training that is resumed in another folder."""
    for name in (METRICS, BEST, ARGUMENTS):
        if (source / name).exists():
            write_atomically(folder / name, partial(shutil.copyfile, source / name))
        else:
            (folder / name).unlink(missing_ok=True)


def set_aside(folder: Path, state: TrainingState, metric: str) -> None:
    """Say which epochs come after the checkpoint; rename the best network if it is of one of them."""
    epochs = [line for line in lines_in(folder / METRICS) if "iteration" not in line]
    dropped = [line["epoch"] for line in epochs if line["epoch"] > state.epoch]
    if not dropped:
        return
    logger.warning("%s: lines of epochs %d to %d are dropped", folder / METRICS, dropped[0], dropped[-1])
    best = best_of(epochs, metric)
    if best is not None and best["epoch"] in dropped and (folder / BEST).exists():
        aside = folder / f"best_of_epoch_{best['epoch']}.safetensors"
        (folder / BEST).rename(aside)
        logger.warning("%s: is of epoch %d; renamed to %s", folder / BEST, best["epoch"], aside.name)


def with_beginning(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``args.yaml`` of a run that is resumed: how it began, and what it was resumed with.

    A warning says where its data differs from the data before.
    """
    path = folder / ARGUMENTS
    if not path.exists():  # the run began without this file
        return dict(facts)
    try:
        began = read_yaml(path, "what a training wrote", most_bytes=MOST_BYTES)
    except DataError as error:  # it is a record: the training does not need it
        set_damaged_aside(path, error)
        return dict(facts)
    resumed = began.get(RESUMED)
    resumed = resumed if isinstance(resumed, list) else []
    _warn_of_other_data([began, *resumed][-1], facts)
    return {**began, RESUMED: [*resumed, dict(facts)]}


def _warn_of_other_data(before: Any, now: Mapping[str, Any]) -> None:
    for split, own in now["data"].items():
        for name, what in _DATA.items():
            old, new = _field(before, "data", split, name), own.get(name)
            if None not in (old, new) and old != new:
                text = f"{what} {split} had {name} {str(old)[:12]} before, and has {str(new)[:12]} now"
                logger.warning("%s; the training does not end as one that was never stopped", text)
                break


def _field(content: Any, *names: str) -> Any:
    """Return what is below some keys, None if it is not there."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
