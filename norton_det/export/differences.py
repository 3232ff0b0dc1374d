"""How far what an exported file returns is from what the network returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from norton_det.runtime.outputs import relative_difference

MASK_THRESHOLD = 0.5
TOLERANCES = {
    "outputs": 1e-3,
    "boxes": 0.5,
    "scores": 1e-3,
    "mask pixels": 5e-2,
    "mask pixels off the edge": 2e-3,
    "keypoints": 1.0,
    "keypoint ties": 0.05,
}
"""What is accepted: of tensors relative to the largest value; boxes and keypoints in pixels; of all pixels of masks the
fraction that is different (a box rounded to another pixel moves its mask), and that which is more than one pixel
off; of all keypoints the fraction that lies elsewhere at an equal score."""
_EQUAL_SCORE = 1e-3


@dataclass
class Differences:
    """The largest differences so far.

    Attributes:
        threshold: detections with a score above it are compared, one by one.
        images: number of images that were compared.
        detections: number of detections that were compared.
        largest: by what is compared.
        unmatched: detections that have no counterpart of the same label, in words.
    """

    threshold: float = 0.3
    images: int = 0
    detections: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    _parts: dict[str, list[float]] = field(default_factory=dict, repr=False)

    def add(self, outputs: Any, expected: Any) -> None:
        """Compare what was returned for images: a tensor or tensors by name of a batch, or a list of detections."""
        if isinstance(expected, list):
            for got, wanted in zip(outputs, expected, strict=True):
                self.images += 1
                self._add_detections(got, wanted)
            return
        first = next(iter(expected.values())) if isinstance(expected, Mapping) else expected
        self.images += len(first)
        same = isinstance(outputs, Mapping) == isinstance(expected, Mapping)
        pairs = (dict(outputs), dict(expected)) if isinstance(expected, Mapping) else (outputs, expected)
        self._note("outputs", relative_difference(*pairs) if same else float("inf"))

    def problem(self) -> str | None:
        """Return what is above its tolerance, in words; None: nothing."""
        if self.unmatched:
            return f"{len(self.unmatched)} of {self.detections} detections differ: {self.unmatched[0]}"
        for name, value in self.figures().items():
            if not value <= TOLERANCES[name]:
                return f"{name} differ by {value:.2g}; expected at most {TOLERANCES[name]:g}"
        return None

    def figures(self) -> dict[str, float]:
        """Return the largest differences, and the fractions."""
        fractions = {name: different / max(total, 1) for name, (different, total) in self._parts.items()}
        return {**self.largest, **fractions}

    def _note(self, name: str, value: float) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), value)

    def _count(self, name: str, different: int, total: int) -> None:
        before = self._parts.get(name, [0, 0])
        self._parts[name] = [before[0] + different, before[1] + total]

    def _add_detections(self, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        if got.keys() != wanted.keys():
            self.unmatched.append(f"{', '.join(got)} are returned, and not {', '.join(wanted)}")
            return
        pairs = _pairs(wanted, got, self.threshold)
        seen = {other for _, other in pairs}
        pairs += [(other, one) for one, other in _pairs(got, wanted, self.threshold) if one not in seen]
        self.detections += len(pairs)
        for one, other in pairs:
            if one is None or other is None:
                self.unmatched.append(_only("the network", wanted, one) or _only("the file", got, other))
            else:
                self._compare({k: v[one] for k, v in wanted.items()}, {k: v[other] for k, v in got.items()})

    def _compare(self, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
        """Compare two detections of the same object."""
        for name in ("boxes", "scores"):
            self._note(name, float((wanted[name] - got[name]).abs().max()))
        if "masks" in wanted:
            ours, theirs = (values["masks"] > MASK_THRESHOLD for values in (got, wanted))
            total = int(theirs.sum())
            if ours.shape != theirs.shape:
                self._count("mask pixels", theirs.numel(), total)
                return
            off = (ours & ~_grown(theirs)) | (theirs & ~_grown(ours))
            self._count("mask pixels", int((ours != theirs).sum()), total)
            self._count("mask pixels off the edge", int(off.sum()), total)
        if "keypoints" in wanted:
            apart = (wanted["keypoints"] - got["keypoints"]).abs().amax(-1)
            scores = (wanted["keypoints_scores"] - got["keypoints_scores"]).abs()
            ties = (apart > TOLERANCES["keypoints"]) & (scores <= _EQUAL_SCORE)
            self._count("keypoint ties", int(ties.sum()), len(ties))
            self._note("keypoints", float(apart[~ties].max()) if not ties.all() else 0.0)


def _pairs(
    ones: Mapping[str, Tensor], others: Mapping[str, Tensor], threshold: float
) -> list[tuple[int | None, int | None]]:
    """Return each detection above the threshold with the nearest of the others that has its label and is not taken."""
    taken: set[int] = set()
    pairs: list[tuple[int | None, int | None]] = []
    for one in torch.where(ones["scores"] > threshold)[0].tolist():
        distances = (others["boxes"] - ones["boxes"][one]).abs().amax(-1)
        distances = distances + (others["scores"] - ones["scores"][one]).abs()
        right = [i for i in torch.where(others["labels"] == ones["labels"][one])[0].tolist() if i not in taken]
        nearest = min(right, key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest] > 2 * TOLERANCES["boxes"]:
            nearest = None
        if nearest is not None:
            taken.add(nearest)
        pairs.append((one, nearest))
    return pairs


def _grown(mask: Tensor) -> Tensor:
    """Return a mask (1, H, W) with its neighbouring pixels."""
    return F.max_pool2d(mask.float(), 3, stride=1, padding=1) > 0


def _only(which: str, found: Mapping[str, Tensor], index: int | None) -> str:
    """Return a detection that only the network or only the file has, in words; empty without one."""
    if index is None:
        return ""
    return f"only {which} has label {int(found['labels'][index])} with score {float(found['scores'][index]):.3f}"
