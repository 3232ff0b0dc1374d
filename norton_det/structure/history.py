"""The history of a network's weights: the steps in a spec's provenance, in the order in which they were done last."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from norton_det.spec import Spec

COMPRESSING = ("decompose", "prune")
TRAINING = "train"
COMPRESSED, CALIBRATED = "compressed", "calibrated"
_BACKBONE = "backbone"  # of which a detector has the history in its own


def with_step(spec: Spec, name: str, step: Mapping[str, Any]) -> Spec:
    """Return a spec with a step as the last one of its history; an earlier one of the same name is replaced.

    Example:
        >>> from norton_det import Spec
        >>> from norton_det.structure.history import with_step
        >>> list(with_step(Spec("resnet50", 10, provenance={"train": {}, "prune": {}}), "train", {}).provenance)
        ['prune', 'train']
    """
    before = {key: value for key, value in spec.provenance.items() if key != name}
    return replace(spec, provenance={**before, name: dict(step)})


def untrained_since(spec: Spec) -> str:
    """Return what a compressed network is that was not trained since, "compressed" or "calibrated"; else an empty text.

    Calibrated are those whose layers were fitted to the outputs of the dense network, by calibration or reconstruction.

    Example:
        >>> from norton_det import Spec
        >>> from norton_det.structure.history import untrained_since
        >>> untrained_since(Spec("resnet50", 10, provenance={"train": {}, "prune": {}}))
        'compressed'
    """
    history = _steps(spec.provenance)
    compressed = [i for i, (name, _) in enumerate(history) if name in COMPRESSING]
    since = dict(history[compressed[-1] :]) if compressed else {}
    if not since or TRAINING in since:
        return ""
    fitted = since.get("calibrate", {}).get("layers") or "reconstruct" in since
    return CALIBRATED if fitted else COMPRESSED


def _steps(provenance: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*(_steps(provenance[_BACKBONE]) if _BACKBONE in provenance else []), *provenance.items()]
