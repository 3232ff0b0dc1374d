"""The folder of a training that is resumed: what it holds that is not of the checkpoint."""

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from norton_det.files import write_atomically
from norton_det.runtime.run_folder import ARGUMENTS, BEST, METRICS, MOST_BYTES
from norton_det.training import TrainingState
from norton_det.training.history import best_of, read_lines
from norton_det.yaml_files import read_yaml

logger = logging.getLogger(__name__)

RESUMED = "resumed"
"""Key of ``args.yaml``: what a run was resumed with, each time."""


def copy_beginning(source: Path, folder: Path) -> None:
    """Copy the metrics, the best network and ``args.yaml`` of a training that is resumed in another folder."""
    for name in (METRICS, BEST, ARGUMENTS):
        if (source / name).exists():
            write_atomically(folder / name, partial(shutil.copyfile, source / name))
        else:
            (folder / name).unlink(missing_ok=True)


def set_aside(folder: Path, state: TrainingState, metric: str) -> None:
    """Say which epochs come after the checkpoint; rename the best network if it is of one of them."""
    epochs = [line for line in read_lines(folder / METRICS) if "iteration" not in line]
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
    """Return the content of ``args.yaml`` of a run that is resumed: how it began, and what it was resumed with."""
    path = folder / ARGUMENTS
    if not path.exists():  # the run began without this file
        return dict(facts)
    began = read_yaml(path, "what a training wrote", most_bytes=MOST_BYTES)
    return {**began, RESUMED: [*began.get(RESUMED, []), dict(facts)]}
