"""Refit a compressed network, layer by layer, to the outputs of the dense one on a calibration set without labels.

Both networks process the images at the same time. Before a layer of the compressed network is computed, it is fitted by
least squares: from the inputs that it gets from the layers before it, which are refitted already, to the outputs of the
dense layer (the asymmetric form of Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for
Classification and Detection", arXiv:1505.06798). One mechanism serves decomposed layers, layers that read a narrowed
group, and both.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from norton_det.calibration.layer_fit import Fit
from norton_det.calibration.lockstep import Run, observed, visit
from norton_det.calibration.schedule import Round, schedule
from norton_det.channels.plan import ChannelPlan, Layer
from norton_det.decompositions import in_implementation
from norton_det.errors import DataError, UsageError
from norton_det.models.rcnn_regions import Regions
from norton_det.models.tasks import Images, Part, task_of
from norton_det.runtime.modes import evaluating, undone_on_failure


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

    All images pass at once, part by part (:meth:`norton_det.models.tasks.Task.parts`), and every layer is computed
    once; where layers run several times, their part is computed again (:mod:`norton_det.calibration.schedule`). Memory
    is that of two forward passes of all images.

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
    task = task_of(reference)
    rounds = _rounds(fit, task.parts(images[:1], regions and regions.of(slice(1))))
    with (
        undone_on_failure(net),
        evaluating(net),
        in_implementation(net, "dense"),
        in_implementation(fit.reference, "dense"),
        tqdm(total=len(fit.layers), desc="calibrate", unit="layer", disable=None, leave=False) as bar,
    ):
        fit.fitted = bar.update
        first: dict[nn.Module, Any] = {}  # what the first part returned
        for part, of_part in zip(task.parts(images, regions), rounds, strict=True):
            needed = not first and len(rounds) > 1  # the other parts begin with what this one returns
            returned: dict[nn.Module, Any] = {}
            for round_ in of_part or [{}] * needed:
                returned = _pass(fit, of_part, round_, partial(_run, part, first), to_the_end=needed)
            first = first or returned
    return fit.report


def _run(part: Part, first: Mapping[nn.Module, Any], model: nn.Module) -> Any:
    return part(model, first.get(model))


def _rounds(fit: Fit, parts: Sequence[Part]) -> list[list[Round]]:
    """Return the rounds of each part, from a run on one image.

    Raises:
        UsageError: a layer never runs.
    """
    rounds: list[list[Round]] = []
    left = fit.layers
    first: dict[nn.Module, Any] = {}
    for part in parts:
        returned: dict[nn.Module, Any] = {}
        rounds.append(schedule(fit.reference, left, _keeping(returned, partial(_run, part, first))))
        first = first or returned
        left = [name for name in left if not any(name in round_ for round_ in rounds[-1])]
    if left:
        raise UsageError(f"layer {left[0]!r} runs 0 times in one pass; expected at least once: it cannot be calibrated")
    return rounds


def _keeping(returned: dict[nn.Module, Any], run: Run) -> Run:
    """Return a run that keeps what networks return."""

    def keeping(net: nn.Module) -> None:
        returned[net] = run(net)

    return keeping


def _pass(fit: Fit, rounds: Sequence[Round], round_: Round, run: Run, *, to_the_end: bool) -> dict[nn.Module, Any]:
    """Run both networks in step, fit the layers of one round, and return what the networks return, if they come so far.

    Args:
        fit: the state.
        rounds: those of this part of the networks.
        round_: one of them.
        run: runs this part.
        to_the_end: go on after the last layer of the round.
    """
    returned: dict[nn.Module, Any] = {}
    run = _keeping(returned, run)
    names = [name for layers in rounds for name in layers]
    fit.begin(round_)
    with observed(fit.reference, names, run) as dense:

        def before(name: str, x: Tensor) -> bool:
            try:
                fit.layer(name, x, next(dense, None))
            except (DataError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                reason = str(error).splitlines()[0]
                raise DataError(f"layer {name!r} cannot be calibrated: {reason}") from error
            return not fit.left and not to_the_end

        visit(fit.net, {name: partial(before, name) for name in names}, run)
        if to_the_end and (call := next(dense, None)):
            raise UsageError(f"layer {call.name!r} runs in the dense network alone: it cannot be calibrated")
    return returned


def _with(plan: ChannelPlan, outside: Sequence[str]) -> ChannelPlan:
    return replace(plan, layers=(*plan.layers, *(Layer(name) for name in outside)))
