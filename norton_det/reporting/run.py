"""The folder of a finished training: what its files say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from norton_det.checkpoint import has_spec, read_spec
from norton_det.cost.complexity import count_complexity
from norton_det.errors import DataError
from norton_det.evaluation.coco_results import RESULTS_FILE, Result, read_results
from norton_det.runtime.run_files import read_about, read_lines

METRICS_FILE, ARGUMENTS_FILE, NETWORK_FILE = "metrics.jsonl", "args.yaml", "last.safetensors"
Line = Mapping[str, Any]
_NO_METRIC = {"epoch", "iteration", "lr", "loss", "train_loss", "seconds"}


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        folder: its folder.
        about: the content of ``args.yaml``; empty for a run of an earlier version.
        epochs: the lines of ``metrics.jsonl`` of the epochs.
        iterations: its lines of iterations; none in a run of an earlier version.
    """

    folder: Path
    about: Mapping[str, Any]
    epochs: Sequence[Line]
    iterations: Sequence[Line]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def args(self) -> Mapping[str, Any]:
        """The arguments of the command; none for a run of an earlier version."""
        return self.about.get("args") or {}

    @cached_property
    def results(self) -> list[Result] | None:
        """The results of the last evaluation; None: the run is not one of a detector."""
        path = self.folder / RESULTS_FILE
        return read_results(path) if path.exists() else None

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics in the lines of the epochs, without the parts of the loss."""
        names = dict.fromkeys(name for line in self.epochs for name in line)
        return [name for name in names if name not in _NO_METRIC and not name.startswith("loss")]

    @property
    def metrics(self) -> Line:
        """The metrics of the last evaluation, by name."""
        for line in reversed(self.epochs):
            if values := {name: line[name] for name in self.metric_names if name in line}:
                return values
        return {}

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return float(sum(line.get("seconds") or 0 for line in self.epochs))

    @cached_property
    def cost(self) -> Mapping[str, int | None]:
        """``macs`` and ``params`` of the network, ``dense_macs`` and ``dense_params`` of the dense one if known."""
        if self.about.get("cost"):
            return dict(self.about["cost"])
        network = self.folder / NETWORK_FILE
        try:
            if not has_spec(network):
                return {}
            counted = count_complexity(read_spec(network, deployed=True))
        except DataError:  # a damaged file does not cost the report
            return {}
        return {"macs": counted.macs, "params": counted.params}

    def data(self, field: str) -> Path | None:
        """Return a path of the validation data: its ``annotations``, or the ``folder`` of its images."""
        value = ((self.about.get("data") or {}).get("val") or {}).get(field)
        return Path(value) if value else None


def read_run(folder: str | Path) -> Run:
    """Read the folder of a training.

    Args:
        folder: the folder; of a version before ``args.yaml`` as well.

    Raises:
        DataError: the folder or its ``metrics.jsonl`` is missing, or a file cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from norton_det.reporting.run import read_run
        >>> Path("run").mkdir()
        >>> _ = Path("run/metrics.jsonl").write_text('{"epoch": 0, "lr": 0.1, "train_loss": 2.5, "top1": 61.0}')
        >>> read_run("run").metrics
        {'top1': 61.0}
    """
    folder = Path(folder)
    lines = read_lines(folder / METRICS_FILE)
    epochs = [line for line in lines if "iteration" not in line]
    return Run(folder, read_about(folder / ARGUMENTS_FILE), epochs, [line for line in lines if "iteration" in line])
