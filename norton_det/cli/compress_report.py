"""What ``norton-det compress`` prints: costs before and after, and the errors of the fit, as tables or as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_det.cost.complexity import Complexity, count_complexity
from norton_det.errors import printable
from norton_det.formatting import format_count, table
from norton_det.spec import Spec

_TOTALS = {
    "macs": "MACs (conv + linear, {})",
    "macs_published": "MACs (published convention)",
    "params": "parameters",
    "activation_memory": "activation memory, bytes",
}
"""Attributes of :class:`Complexity`, and their names in the table."""
_NMSE = """\
NMSE: mean over the filters of |W - W'|^2 / |W|^2, before calibration. Usual with CP of a trained network's 3x3 filters:
0.6 at rank 1, 0.4 at 2, 0.2 at 4, 0.04 at 7 (of random weights 0.8 at rank 1). Above 0.2, calibrate or fine-tune."""


@dataclass(frozen=True)
class Report:
    """The costs of a network: dense, as it was given, and as it was compressed.

    Attributes:
        dense: costs of the architecture's dense network.
        given: costs of the network that was given, which may have been compressed before.
        compressed: costs of the result.
        spec: of the result.
        file: that was written.
        expected: what was expected of a choice within a budget.
    """

    dense: Complexity
    given: Complexity
    compressed: Complexity
    spec: Spec
    file: str
    expected: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, given: Spec, spec: Spec, file: str, expected: Mapping[str, Any] | None = None) -> "Report":
        """Return the report on a network of the spec ``given``, from which one of ``spec`` was made."""
        dense = count_complexity(Spec(spec.arch, spec.num_classes, options=spec.options))
        before = count_complexity(given) if _is_compressed(given) else dense
        return cls(dense, before, count_complexity(spec), spec, file, expected)

    def text(self) -> str:
        """Return tables of the layers and of the totals."""
        rows = [[str(cell) for cell in row] for row in self._rows()]
        outputs = ("output error", "-> output error") if self._calibrated() else ()
        header = ("layer", "NMSE", "degeneracy", *outputs, "MACs", "-> MACs", "params", "-> params", "")
        lines = [table(header, rows), "", *([_NMSE, ""] if self._fits() else []), self._totals()]
        if self.expected is not None:
            lines += [_expected(self.expected)]
        return "\n".join([*lines, f"written: {printable(self.file)} ({self._bytes() / 1e6:.2f} MB)"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        totals = {
            name: {key: getattr(costs, key) for key in _TOTALS}
            for name, costs in (("dense", self.dense), ("input", self.given), ("compressed", self.compressed))
        }
        keys = ("macs", "params")
        layers = [
            {
                "name": new.name,
                **{f"input_{key}": getattr(old, key) for key in keys},
                **{key: getattr(new, key) for key in keys},
                **self._fits().get(new.name, {}),
                **self._calibrated().get(new.name, {}),
            }
            for old, new in zip(self.given.layers, self.compressed.layers, strict=True)
        ]
        size = {"image_size": self.compressed.image_size, "bytes": self._bytes()}
        expected = {} if self.expected is None else {"expected": dict(self.expected)}
        return {"file": self.file, "arch": self.spec.arch, **size, **totals, **expected, "layers": layers}

    def _fits(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the method, rank and errors of each decomposed layer."""
        layers = self.spec.provenance.get("decompose", {}).get("layers", {})
        return {name: _renamed(fit) for name, fit in layers.items()}

    def _calibrated(self) -> Mapping[str, Mapping[str, float]]:
        layers: Mapping[str, Mapping[str, float]] = self.spec.provenance.get("calibrate", {}).get("layers", {})
        return layers

    def _bytes(self) -> int:
        return Path(self.file).stat().st_size

    def _rows(self) -> Iterator[Sequence[object]]:
        fits, outputs = self._fits(), self._calibrated()
        skipped = self.spec.provenance.get("decompose", {}).get("skipped", {})
        for old, new in zip(self.given.layers, self.compressed.layers, strict=True):
            fit, errors = fits.get(new.name), outputs.get(new.name)
            note = f"{fit['method']}, rank {fit['rank']}" if fit else skipped.get(new.name, "")
            error = [f"{fit['nmse']:.4f}", f"{fit['degeneracy']:.2f}"] if fit else ["", ""]
            if outputs:
                error += [f"{errors[key]:.4f}" if errors else "" for key in ("plain", "fitted")]
            costs = [format_count(count) for count in (old.macs, new.macs, old.params, new.params)]
            yield new.name, *error, *costs, note

    def _totals(self) -> str:
        """Return the table of the totals; a network that was compressed before has a column of its own."""
        steps = {"dense": self.dense, "input": self.given, "compressed": self.compressed}
        if self.given == self.dense:
            steps.pop("input")
        before = list(steps)[:-1]
        size = "x".join(map(str, self.compressed.image_size))
        rows = []
        for key, name in _TOTALS.items():
            *old, new = [getattr(costs, key) for costs in steps.values()]
            reductions = [f"{100 * (1 - new / count):.1f} %" for count in old]
            rows.append([name.format(size), *(f"{count:,}" for count in (*old, new)), *reductions])
        reductions = ["reduction"] if len(before) == 1 else [f"reduction of {name}" for name in before]
        return table(("total", *steps, *reductions), rows)


def _is_compressed(spec: Spec) -> bool:
    return bool(spec.decompositions or spec.widths)


def already_compressed(spec: Spec) -> str | None:
    """Return how a network is compressed, in words; None if it is dense."""
    if not _is_compressed(spec):
        return None
    return f"{len(spec.decompositions)} layers decomposed, {len(spec.widths)} channel groups narrowed"


def _renamed(fit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a fit by the names of today: files without a version call the degeneracy "cancellation"."""
    return {"degeneracy" if key == "cancellation" else key: value for key, value in fit.items()}


def _expected(allocation: Mapping[str, Any]) -> str:
    """Return what was expected of the choice of methods, ranks and rates."""
    latency = allocation.get("latency_ms")
    timed = "" if latency is None else f"; on this machine, deployed, {latency:.1f} ms by its layers' times"
    return f"expected change of the outputs: {100 * allocation['change']:.1f} % of their variance{timed}"
