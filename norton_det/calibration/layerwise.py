"""Refit a compressed network, layer by layer, to the outputs of the dense one on a calibration set without labels.

Before a layer of the compressed network is computed for good, it is fitted by least squares: from the inputs that it
gets from the layers before it, which are refitted already, to the outputs of the dense layer (the asymmetric form of
Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection",
arXiv:1505.06798). One mechanism serves decomposed layers, layers that read a narrowed group, and both.

Both networks process some images at a time. A pass of all images adds up the moments of one layer. It begins where the
one before it ended, or as near to it as the limit of what is kept allows (:mod:`norton_det.calibration.cuts`).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.cuts import Cuts, cuts_of
from norton_det.calibration.kept import Cut, Outputs, Recording, returning
from norton_det.calibration.layer_fit import Fit
from norton_det.calibration.lockstep import observed, visit
from norton_det.calibration.schedule import schedule
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.decompositions import in_implementation
from norton_det.errors import DataError, UsageError
from norton_det.models.rcnn_regions import Regions
from norton_det.models.tasks import Images, Part, task_of
from norton_det.runtime.malloc import give_back_freed_memory
from norton_det.runtime.modes import evaluating, undone_on_failure

_NUMBERS = 2**23
"""Of the largest output of a module, for the images that are processed at a time."""


@torch.no_grad()
def calibrate(
    net: nn.Module,
    reference: nn.Module,
    plan: ChannelPlan,
    kept: Mapping[str, Tensor],
    images: Images,
    *,
    seed: int = 0,
    outside: Sequence[str] = (),
    regions: Regions | None = None,
) -> dict[str, dict[str, float]]:
    """Refit the layers of ``net`` in place to the outputs of ``reference`` on a calibration set.

    The networks may have any floating dtype; sums over samples are in double precision. Where it fails, ``net`` is as
    before.

    Memory is that of two forward passes of a few images, of what is kept of all images from one pass to the next
    (:data:`norton_det.calibration.cuts.KEPT` numbers of each network) and, with ``regions``, of the features of all
    images in both networks.

    Args:
        net: the compressed network.
        reference: the network that it was made from; it stays as it is.
        plan: channel plan of ``reference``: the layers to refit.
        kept: group -> channels of ``reference`` that ``net`` has, int64, ascending; those of other groups are all kept.
        images: without labels, as the network takes them.
        seed: of the spatial positions that are drawn and of the decompositions' starts.
        outside: further layers to refit, which the plan does not name; their inputs and outputs are all kept.
        regions: boxes of the images for the parts behind the features; None: none of those is run.

    Returns:
        For each layer ``plain`` and ``fitted``: its output's squared error as a fraction of the output's variance, with
        the weights as they were (and the best bias for them) and as they are now.

    Raises:
        UsageError: there is no image; or a layer never runs, or on inputs that depend on its own outputs, so that they
            are not known when it is fitted.
        DataError: values in a network that are not finite, from images or weights; the message names the layer.
    """
    if not len(images):
        raise UsageError("calibration has no image; expected at least 1")
    fit = Fit(net, copy.deepcopy(reference).eval(), _with(plan, outside), kept, seed, len(images))
    with (
        undone_on_failure(net),
        evaluating(net),
        in_implementation(net, "dense"),
        in_implementation(fit.reference, "dense"),
        tqdm(total=len(fit.layers), desc="calibrate", unit="layer", disable=None, leave=False) as bar,
    ):
        task = task_of(reference)
        steps = _steps(fit, task.parts(images[:1], regions and regions.of(slice(1))), len(images))
        count = max(1, _NUMBERS // max(step.cuts.largest for step in steps))
        chunks = []
        for start in range(0, len(images), count):
            part = slice(start, start + count)
            chunks.append(_Chunk(range(len(images))[part], task.parts(images[part], regions and regions.of(part))))
        for step in steps:
            for i, name in enumerate(step.layers):
                _fit_layer(fit, step, i, name, chunks)
                give_back_freed_memory()  # what is free lies between what is kept, where little fits
                bar.update()
            if step.number == 0 and len(steps) > 1:
                for chunk in chunks:
                    chunk.finish(step, (net, fit.reference))
            for chunk in chunks:
                chunk.outputs.clear()
    return fit.report


@dataclass(frozen=True)
class _Step:
    """A part of the networks: the layers in the order in which they are fitted with their numbers of calls."""

    number: int
    layers: Mapping[str, int]
    cuts: Cuts


@dataclass
class _Chunk:
    """Some of the images: the parts that run on them, and what is kept of each network."""

    images: range
    parts: list[Part]
    first: dict[nn.Module, Any] = field(default_factory=dict)  # what the first part returned
    outputs: dict[nn.Module, Outputs] = field(default_factory=dict)

    def run(self, step: _Step, net: nn.Module) -> Any:
        return self.parts[step.number](net, self.first.get(net))

    @contextmanager
    def resumed(self, net: nn.Module, cut: Cut, recording: Recording) -> Iterator[None]:
        """Begin at the last cut within the block, and keep what is recorded for the next one."""
        outputs = self.outputs.get(net, {})
        with returning(net, outputs), recording():
            yield
        self.outputs[net] = cut.of(outputs | recording.outputs)

    def recording(self, net: nn.Module, step: _Step, cut: Cut, stop: Any) -> Recording:
        have = self.outputs.get(net, {})
        new = Cut(*(tuple(name for name in names if name not in have) for names in cut))
        return Recording(net, new, step.cuts.calls, stop)

    def finish(self, step: _Step, nets: Sequence[nn.Module]) -> None:
        """Run the first part to its end, and keep what it returns in place of what was kept before."""
        for net in nets:
            with torch.no_grad(), returning(net, self.outputs.pop(net, {})):
                self.first[net] = self.run(step, net)


def _steps(fit: Fit, parts: Sequence[Part], images: int) -> list[_Step]:
    """Return what is fitted in each part, from a run on one image.

    Raises:
        UsageError: a layer never runs.
    """
    steps: list[_Step] = []
    left = fit.layers
    first: Any = None
    for number, part in enumerate(parts):
        run = partial(_run, part, first)
        layers = schedule(fit.reference, left, run)
        steps.append(_Step(number, layers, cuts_of(fit.reference, list(layers), run, images)))
        if first is None:
            with torch.no_grad():
                first = run(fit.reference)
        left = [name for name in left if name not in layers]
    if left:
        raise UsageError(f"layer {left[0]!r} runs 0 times in one pass; expected at least once: it cannot be calibrated")
    return steps


def _run(part: Part, first: Any, net: nn.Module) -> Any:
    return part(net, first)


def _fit_layer(fit: Fit, step: _Step, number: int, name: str, chunks: Sequence[_Chunk]) -> None:
    """Run both networks in step on all images, chunk by chunk, and fit one layer to what is seen of it.

    The dense network is one layer ahead: what it computes for the fit it need not compute again.
    """
    cuts = step.cuts.before
    with _naming(name):
        fit.begin(name, step.layers[name])
    for chunk in chunks:
        _pass(fit, step, chunk, cuts[number], cuts[number + 1])
    with _naming(name):
        fit.end()


def _pass(fit: Fit, step: _Step, chunk: _Chunk, cut: Cut, dense_cut: Cut) -> None:
    """Run both networks on some images from where the last pass began to the layer that is fitted."""
    names = _watched(step, (*cut.kept, *cut.passed))
    fit.begin_images(chunk.images)
    run = partial(chunk.run, step)
    ours = chunk.recording(fit.net, step, cut, lambda: fit.has_seen_all)
    its = chunk.recording(fit.reference, step, dense_cut, lambda: fit.has_seen_all)
    resumed = chunk.resumed(fit.net, cut, ours), chunk.resumed(fit.reference, dense_cut, its)
    with resumed[0], resumed[1], observed(fit.reference, names, run) as dense:

        def before(name: str, x: Tensor) -> bool:
            if not fit.has_seen_all:  # what comes after that is only recorded
                with _naming(name):
                    fit.before(name, x, next(dense, None))
            return fit.has_seen_all and ours.is_complete

        visit(fit.net, before, fit.after, names, run)
        while not its.is_complete and next(dense, None):
            pass


def _watched(step: _Step, skipped: Sequence[str]) -> list[str]:
    """Return the layers that are not within a module that does not run."""
    return [name for name in step.layers if not any(name.startswith(f"{outer}.") for outer in skipped)]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (DataError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        reason = str(error).splitlines()[0]
        raise DataError(f"layer {name!r} cannot be calibrated: {reason}") from error


def _with(plan: ChannelPlan, outside: Sequence[str]) -> ChannelPlan:
    return replace(plan, layers=(*plan.layers, *(Layer(name) for name in outside)))
