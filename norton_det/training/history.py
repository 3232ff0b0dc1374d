"""The lines of ``metrics.jsonl``: what they say about a training, and the file of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from norton_det.errors import DataError
from norton_det.files import write_text
from norton_det.runtime.run_files import read_lines, set_damaged_aside
from norton_det.runtime.run_folder import METRICS
from norton_det.storage import naming
from norton_det.training.state import TrainingState

Line = Mapping[str, Any]


def best_of(history: Sequence[Line], metric: str) -> Line | None:
    """Return the line of the epoch with the best value of a metric, the first of several; None without a value.

    Example:
        >>> from norton_det.training.history import best_of
        >>> history = [{"epoch": 0, "top1": 50.0}, {"epoch": 1, "top1": 70.0}, {"epoch": 2, "top1": 70.0}]
        >>> best_of(history, "top1")["epoch"]
        1
    """
    evaluated = [line for line in history if line.get(metric) is not None]
    return max(evaluated, key=lambda line: line[metric], default=None)


def evaluations_since_best(history: Sequence[Line], metric: str) -> int:
    """Return how many epochs were evaluated after the best one.

    Example:
        >>> from norton_det.training.history import evaluations_since_best
        >>> evaluations_since_best([{"epoch": 0, "top1": 50.0}, {"epoch": 1}, {"epoch": 2, "top1": 40.0}], "top1")
        1
    """
    best = best_of(history, metric)
    return 0 if best is None else sum(line["epoch"] > best["epoch"] and metric in line for line in history)


def is_over(history: Sequence[Line], metric: str, *, epoch: int, epochs: int, patience: int | None) -> bool:
    """Return whether a training is finished after an epoch: it was the last one, or patience is exhausted."""
    exhausted = patience is not None and evaluations_since_best(history, metric) >= patience
    return epoch + 1 >= epochs or exhausted


def kept_epochs(history: Sequence[Line], metric: str) -> set[int]:
    """Return the epochs whose checkpoints are kept: the last, the one before, and the best.

    Example:
        >>> from norton_det.training.history import kept_epochs
        >>> sorted(kept_epochs([{"epoch": i, "top1": -i} for i in range(9)], "top1"))
        [0, 7, 8]
    """
    best = best_of(history, metric)
    return {line["epoch"] for line in (*history[-2:], *([best] if best else []))}


def summary(history: Sequence[Line], metric: str) -> str:
    """Return the best and the last value of a metric as text.

    Example:
        >>> from norton_det.training.history import summary
        >>> summary([{"epoch": 0, "top1": 70.0}, {"epoch": 1, "top1": 65.0}], "top1")
        'best top1 70.0000 (epoch 0), last 65.0000 (epoch 1)'
    """
    best = best_of(history, metric)
    if best is None:
        return f"no {metric}"
    last = next(line for line in reversed(history) if line.get(metric) is not None)
    texts = [f"{line[metric]:.4f} (epoch {line['epoch']})" for line in (best, last)]
    return f"best {metric} {texts[0]}, last {texts[1]}"


class MetricsFile:
    """``metrics.jsonl`` of a training, to which lines are appended.

    On resuming, lines of iterations after the checkpoint are dropped, and the lines of epochs are those of the
    checkpoint: no line is there twice.

    Args:
        folder: folder of the file.
        state: the state in which the training begins or is resumed.
    """

    def __init__(self, folder: str | Path, state: TrainingState) -> None:
        self.path = Path(folder) / METRICS
        kept = [line for line in lines_in(self.path) if line.get("iteration", state.iteration) < state.iteration]
        lines = sorted([*kept, *state.history], key=lambda line: (line["epoch"], "iteration" not in line))
        write_text(self.path, "".join(map(_text, lines)))

    def add(self, line: Line) -> None:
        """Append a line."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_text(line))


def complete_lines(folder: str | Path, state: TrainingState) -> None:
    """Write ``metrics.jsonl`` again if it lacks the last epoch of a state: the run ended before it was added."""
    epochs = [line["epoch"] for line in lines_in(Path(folder) / METRICS) if "iteration" not in line]
    if max(epochs, default=-1) < state.epoch:
        MetricsFile(folder, state)


def lines_in(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; none if there is no file.

    A damaged one is renamed: a training goes on without the lines of its iterations, for its checkpoint has the rest.
    """
    if not path.exists():
        return []
    try:
        return read_lines(path)
    except DataError as error:
        set_damaged_aside(path, error)
        return []


def _text(line: Line) -> str:
    return json.dumps(line) + "\n"
