"""A detector for other classes or keypoints: what fits is kept, and only the rows of what is new are made anew."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.data.coco.labels import BACKGROUND
from norton_det.deployment.record import refuse_deployed
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.models.tasks import Detection
from norton_det.spec import UNUSED, Spec
from norton_det.structure.build import build_network
from norton_det.structure.history import with_step

logger = logging.getLogger(__name__)

_KEYPOINTS = "num_keypoints"
_SHOWN = 12  # names in a line of the log


@dataclass(frozen=True)
class Rows:
    """The rows of a detector's heads that are kept: by name, whatever their position.

    Attributes:
        kind: what the names are of: "classes" or "keypoints".
        before: the names of the detector that is changed, by row; None where it is not known.
        after: the names of the new one.
    """

    kind: str
    before: Sequence[str | None]
    after: Sequence[str]

    @property
    def kept(self) -> dict[int, int]:
        """The row before, of each new row that is kept."""
        rows = {name: row for row, name in enumerate(self.before) if name is not None and name != UNUSED}
        return {row: rows[name] for row, name in enumerate(self.after) if name in rows}

    def named(self) -> dict[str, list[str]]:
        """Return the names that are kept, new and left out; the background is none of them."""
        after, before = ([name for name in names if name not in (None, UNUSED)] for names in (self.after, self.before))
        kept = [self.after[row] for row in self.kept]
        names = {
            "kept": kept,
            "new": [n for n in after if n not in kept],
            "left out": [n for n in before if n not in kept],
        }
        return {part: [str(name) for name in found if name != BACKGROUND] for part, found in names.items()}


def with_classes(
    net: nn.Module,
    spec: Spec,
    classes: Sequence[str],
    keypoints: Sequence[str] | None = None,
    *,
    source: str | Path = "detector",
) -> tuple[nn.Module, Spec]:
    """Return a detector for other classes, or other keypoints, with the weights of one that there is.

    Rows of the heads whose class or keypoint has the same name are copied, and so is everything else; the background is
    always kept. New rows are initialised at random. A compressed detector stays compressed. The log says what was kept.

    Args:
        net: the detector; it is not changed.
        spec: its spec.
        classes: names of the classes; the background may be left out.
        keypoints: names of the keypoints; None: as they are.
        source: name of the detector in messages: its file.

    Returns:
        The new detector, with what was frozen still frozen and in the same mode, and its spec.

    Raises:
        UsageError: the network is no detector, is deployed, or has no keypoints and some are given.

    Example:
        >>> from norton_det.builders import make_detector, with_classes
        >>> net, spec = make_detector("fasterrcnn_cpresnet50_fpn", classes=["cat", "dog"])
        >>> other, spec = with_classes(net, spec, ["dog", "cow", "pig"])
        >>> spec.classes
        ('__background__', 'dog', 'cow', 'pig')
        >>> before, after = (each.roi_heads.box_predictor.cls_score.weight for each in (net, other))
        >>> bool((after[1] == before[2]).all())
        True
    """
    refuse_deployed(net)
    architecture = ARCHITECTURES[spec.arch]
    if architecture.task.name != Detection.name:
        raise UsageError(f"{source}: is a {spec.arch}; expected a detector")
    if keypoints and "keypoints" not in architecture.task.kinds:
        raise UsageError(f"{source}: a {spec.arch} has no keypoints; {', '.join(keypoints)} are given")
    changed = [rows for rows in _changed(spec, with_background(classes), keypoints) if rows.before != rows.after]
    wanted, rows_of = spec, dict[str, tuple[int, Rows]]()
    for rows in changed:
        rows_of |= {name: (dim, rows) for name, dim in _dependent(spec, rows.kind, architecture).items()}
        wanted = _described(wanted, rows.kind, rows.after)
        wanted = with_step(wanted, f"other {rows.kind}", rows.named())
        _log(source, rows)
    if not changed:
        return net, spec
    new = build_network(wanted, architecture).module
    _copy(new, net, rows_of)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in rows_of)
    logger.info("%s: new rows in %s; all other weights are kept", source, ", ".join(layers))
    return new, wanted


def with_background(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a detector's classes by label: the background is the first one.

    Example:
        >>> from norton_det.builders.new_classes import with_background
        >>> with_background(["cat", "dog"])
        ('__background__', 'cat', 'dog')
    """
    return (BACKGROUND, *(name for i, name in enumerate(classes) if (i, name) != (0, BACKGROUND)))


def _changed(spec: Spec, classes: tuple[str, ...], keypoints: Sequence[str] | None) -> list[Rows]:
    unknown = [None] * (spec.num_classes - 1)
    before: list[Rows] = [Rows("classes", (BACKGROUND, *(spec.classes[1:] or unknown)), classes)]
    if keypoints:
        before.append(Rows("keypoints", spec.keypoints or (None,) * _number(spec, "keypoints"), tuple(keypoints)))
    return before


def _number(spec: Spec, kind: str) -> int:
    if kind == "classes":
        return spec.num_classes
    return int(spec.options.get(_KEYPOINTS, 17))


def _described(spec: Spec, kind: str, names: Sequence[str]) -> Spec:
    if kind == "classes":
        return replace(spec, num_classes=len(names), classes=tuple(names))
    return replace(spec, options={**spec.options, _KEYPOINTS: len(names)}, keypoints=tuple(names))


def _dependent(spec: Spec, kind: str, architecture: Architecture) -> dict[str, int]:
    """Return the dimension of each tensor that grows with the number of classes or keypoints."""
    count = _number(spec, kind)
    one, more = (_described(spec, kind, [f"{i}" for i in range(number)]) for number in (count, count + 1))
    shapes = [_shapes(each, architecture) for each in (one, more)]
    differing = {name: (shape, shapes[1][name]) for name, shape in shapes[0].items() if shape != shapes[1][name]}
    return {
        name: next(dim for dim, (a, b) in enumerate(zip(*pair, strict=True)) if a != b)
        for name, pair in differing.items()
    }


def _shapes(spec: Spec, architecture: Architecture) -> Mapping[str, torch.Size]:
    state = build_network(spec, architecture, "meta").module.state_dict()
    return {name: tensor.shape for name, tensor in state.items()}


def _copy(new: nn.Module, net: nn.Module, rows_of: Mapping[str, tuple[int, Rows]]) -> None:
    """Copy all weights that are kept, and what is frozen, the mode and the device."""
    new.to(next(net.parameters()).device)
    state: dict[str, Tensor] = net.state_dict()
    with torch.no_grad():
        for name, tensor in new.state_dict().items():
            if name not in rows_of:
                tensor.copy_(state[name])
                continue
            dim, rows = rows_of[name]
            after, before = tensor.movedim(dim, 0), state[name].movedim(dim, 0)
            after, before = (t.unflatten(0, (len(n), -1)) for t, n in ((after, rows.after), (before, rows.before)))
            for row, source in rows.kept.items():
                after[row].copy_(before[source])
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name in trained)
    new.train(net.training)


def _log(source: str | Path, rows: Rows) -> None:
    names: dict[str, Any] = rows.named()
    unnamed = all(name is None for name in rows.before[1:])
    if unnamed:
        logger.warning("%s: does not name its %s: none can be kept", source, rows.kind)
    text = "; ".join(f"{part}: {_listed(found)}" for part, found in names.items() if part != "left out" or not unnamed)
    logger.info("%s: the detector gets other %s; %s", source, rows.kind, text)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
