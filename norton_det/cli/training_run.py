"""A training from its first epoch to the last: its folder, its log, what it says at its start, and what it writes."""

import argparse
import datetime
import hashlib
import logging
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torchvision
import yaml
from torch import Tensor, nn

from norton_det.cli.resumed_folder import copy_beginning, set_aside, with_beginning
from norton_det.cli.training_options import FREE, Checkpoint
from norton_det.cost.complexity import count_complexity
from norton_det.data.coco.dataset import CocoDataset
from norton_det.data.coco.labels import BACKGROUND
from norton_det.errors import DataError, TerminatedError, UsageError
from norton_det.files import write_text
from norton_det.formatting import format_count
from norton_det.runtime.device import describe_device
from norton_det.runtime.distributed import compute_once, is_main, world_size
from norton_det.runtime.logs import RunLog
from norton_det.runtime.run_folder import (
    ARGUMENTS,
    LOG,
    checkpoint_in,
    in_use,
    new_run_folder,
    refuse_other_run,
    remove_run,
)
from norton_det.runtime.signals import catch_signals, end_at_once
from norton_det.runtime.tensorboard import tensorboard_log
from norton_det.spec import UNUSED, Spec
from norton_det.storage import check_space, make_folder, naming
from norton_det.training import Task, TrainingState, TrainOptions
from norton_det.training.fit import fit
from norton_det.training.history import complete_lines, is_over, summary
from norton_det.version import __version__

logger = logging.getLogger(__name__)

Images = Callable[[nn.Module], Mapping[str, Tensor]]
"""Images (3, H, W), uint8, by name, on which the detections of a network are drawn."""


@contextmanager
def open_run(args: argparse.Namespace, model: str) -> Iterator[RunLog]:
    """Choose the folder of a training, and keep its log until :func:`train` has something to write.

    ``args.output_dir`` becomes the folder: as given, or that of ``--resume``, or a new one, ``runs/MODEL-N``. If the
    block ends before something is written, a new one is removed.

    Args:
        args: of the command.
        model: in the name of a new folder.

    Raises:
        UsageError: the folder holds another run than that of ``--resume``, without ``--overwrite``; or another process
            is using it.
    """
    log = RunLog()
    logging.getLogger().addHandler(log)
    new = not (args.output_dir or args.resume or args.test_only)
    try:
        if new:
            args.output_dir = compute_once(lambda: str(new_run_folder(model)))
        elif args.resume and not (args.output_dir or args.test_only):
            args.output_dir = str(checkpoint_in(args.resume).parent)
        if args.output_dir and not (new or args.overwrite or _is_own(args)):
            refuse_other_run(args.output_dir)
        with ExitStack() as stack:
            if world_size() > 1:  # they end together; one alone need not wait
                stack.enter_context(catch_signals())
            if args.output_dir and (holder := compute_once(lambda: stack.enter_context(in_use(args.output_dir)))):
                raise UsageError(f"--output-dir {args.output_dir}: in use by {holder}; expected another folder")
            if args.output_dir and is_main():
                logger.info("Output: %s", args.output_dir)
            yield log
    except BaseException as error:
        usual = isinstance(error, (UsageError, DataError, TerminatedError))
        log.note(f"{type(error).__name__}: {error}", exc_info=None if usual else sys.exc_info())
        raise
    finally:
        logging.getLogger().removeHandler(log)
        log.close()
        if new and args.output_dir and is_main():
            with suppress(OSError):  # it is not empty
                Path(args.output_dir).rmdir()
                Path(args.output_dir).parent.rmdir()


def _is_own(args: argparse.Namespace) -> bool:
    """Tell whether the folder is that of the run that is resumed, or whose network is evaluated."""
    sources = [checkpoint_in(args.resume)] if args.resume else []
    if args.test_only and args.weights:
        sources.append(Path(str(args.weights)))
    return any(source.parent.resolve() == Path(args.output_dir).resolve() for source in sources)


def train(
    args: argparse.Namespace,
    state: TrainingState,
    task: Task,
    checkpoint: Checkpoint | None,
    log: RunLog,
    *,
    data: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    free: Collection[str] = (),
    images: Images | None = None,
) -> None:
    """Train up to ``--epochs`` epochs, from the start or from a checkpoint, and write the files.

    Args:
        args: of the command; they are kept in the checkpoint.
        state: before the first epoch.
        task: what the network is trained for.
        checkpoint: of ``--resume``.
        log: of :func:`open_run`.
        data: what ``args.yaml`` says about the images, for "train" and "val".
        options: of :class:`TrainOptions`, besides those that both commands have.
        free: arguments that may change on resuming, besides :data:`FREE`.
        images: images of the evaluation for TensorBoard.
    """
    if checkpoint is not None:
        checkpoint.restore(state, args, FREE | set(free))
        if is_over(state.history, task.best, epoch=state.epoch, epochs=args.epochs, patience=args.patience):
            epochs, results = state.epoch + 1, summary(state.history, task.best)
            logger.info("%s: is finished after %d epochs: %s", checkpoint.path, epochs, results)
            if _is_own(args):
                compute_once(lambda: complete_lines(args.output_dir, state))
            return
    compute_once(lambda: _begin(args, state, task, checkpoint, log, data))
    fit(
        state,
        task,
        TrainOptions(
            clip_grad_norm=args.clip_grad_norm,
            amp=args.amp,
            ema_steps=args.model_ema_steps,
            seed=args.seed,
            print_freq=args.print_freq,
            log_every=args.log_every or args.print_freq,
            **options,
        ),
        epochs=args.epochs,
        folder=args.output_dir,
        args=vars(args),
        eval_every=getattr(args, "eval_every", 1),
        patience=args.patience,
        keep=args.keep,
        on_line=_on_line(args, state, images),
    )
    if is_main() and not args.no_plots:
        with end_at_once():
            _report(args.output_dir)


def coco_facts(images: CocoDataset) -> dict[str, Any]:
    """Return what ``args.yaml`` says about a COCO data set."""
    objects = sum(len(images.coco.imgToAnns[number]) for number in images.ids)
    paths = {"annotations": str(images.annotations.absolute()), "folder": str(images.folder.absolute())}
    with images.annotations.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"images": len(images), "objects": objects, **paths, "sha256": digest}


def _begin(
    args: argparse.Namespace,
    state: TrainingState,
    task: Task,
    checkpoint: Checkpoint | None,
    log: RunLog,
    data: Mapping[str, Mapping[str, Any]],
) -> None:
    """Make the folder ready, and say and write down what is trained on what."""
    folder = Path(args.output_dir)
    make_folder(folder)
    if args.overwrite and not _is_own(args):
        remove_run(folder)
    if checkpoint is not None and not _is_own(args):
        copy_beginning(Path(checkpoint.path).parent, folder)
    if checkpoint is not None:
        set_aside(folder, state, task.best)
    check_space(folder, sum(value.nbytes for value in state.model.state_dict().values()), "a checkpoint")
    with naming(folder / LOG):
        log.open(folder / LOG)
    facts = _facts(args, state.spec, task.device, data)
    lines = _header(args, state, facts)
    width = max(map(len, lines))
    for name, text in lines.items():
        logger.info("%-*s %s", width + 1, f"{name}:", text)
    content = facts if checkpoint is None else with_beginning(folder, facts)
    write_text(folder / ARGUMENTS, yaml.safe_dump(content, sort_keys=False, width=1000))


def _facts(
    args: argparse.Namespace, spec: Spec, device: torch.device, data: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the content of ``args.yaml``."""
    versions = {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__), "norton_det": __version__}
    return {
        "command": getattr(args, "command", None),
        "args": {name: value for name, value in vars(args).items() if name != "command"},
        "versions": {"python": platform.python_version(), **versions},
        "device": describe_device(device),
        "git_commit": _git_commit(),
        "data": {split: dict(facts) for split, facts in data.items()},
        "classes": list(spec.classes),
        "cost": cost_of(spec),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def cost_of(spec: Spec) -> dict[str, int]:
    """Return MACs and parameters of a network, and of the dense one."""
    with torch.random.fork_rng(devices=[]):  # networks are made to be counted
        cost = dense = count_complexity(spec)
        if _is_compressed(spec):
            dense = count_complexity(Spec(spec.arch, spec.num_classes, options=spec.options))
    return {"macs": cost.macs, "params": cost.params, "dense_macs": dense.macs, "dense_params": dense.params}


def _is_compressed(spec: Spec) -> bool:
    return bool(spec.decompositions or spec.widths)


def _git_commit() -> str | None:
    """Return the commit that is checked out in the current folder; None if there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _header(args: argparse.Namespace, state: TrainingState, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what a training is, by names of lines."""
    spec, cost = state.spec, facts["cost"]
    counts = [f"{format_count(cost[name])} {text}" for name, text in (("macs", "MACs"), ("params", "parameters"))]
    relative = [f"{100 * cost[name] / cost[f'dense_{name}']:.1f} %" for name in ("macs", "params")]
    of_dense = f" ({' and '.join(relative)} of the dense network's)" if _is_compressed(spec) else ""
    names = [name for name in spec.classes if name not in (BACKGROUND, UNUSED)]
    begun = f", from epoch {state.epoch + 1}, batch {state.step}" if state.epoch >= 0 or state.step else ""
    lines = {"Model": f"{spec.arch}, {'compressed' if _is_compressed(spec) else 'dense'}"}
    for split, text in (("train", "Training data"), ("val", "Validation data")):
        data = facts["data"][split]
        objects = "" if data["objects"] is None else f", {data['objects']} objects"
        lines[text] = f"{data['images']} images{objects} ({data['annotations'] or data['folder']})"
    lines["Classes"] = f"{len(names) or spec.num_classes}" + (f" ({shorten(', '.join(names), 100)})" if names else "")
    lines["Cost"] = f"{' and '.join(counts)}{of_dense}"
    processes = f", {world_size()} processes" if world_size() > 1 else ""
    lines["Device"] = f"{facts['device']}{processes}{', mixed precision' if args.amp else ''}"
    lines["Training"] = f"{args.epochs} epochs{begun}, {args.batch_size} images a batch, {args.opt}, lr {args.lr:g}"
    lines["Seed"] = str(args.seed)
    return lines


def _report(folder: str) -> None:
    """Write the pictures and the page of a run. The run is finished: if this fails, only a line says so."""
    try:
        from norton_det.reporting.report import write_report

        logger.info("Report: %s", write_report([folder]))
    except Exception as error:
        text = "%s: the report could not be written: %s: %s; norton-det report %s tries again"
        logger.warning(text, folder, type(error).__name__, error, folder)


def _on_line(
    args: argparse.Namespace, state: TrainingState, images: Images | None
) -> Callable[[Mapping[str, Any]], None]:
    """Return what is done with a line of ``metrics.jsonl`` besides writing it."""
    if not (args.tensorboard and is_main()):
        return lambda line: None

    def drawn() -> Mapping[str, Tensor]:
        try:
            return images(state.network) if images is not None else {}
        except Exception as error:  # never lose a run for an image
            logger.warning("TensorBoard: images of this epoch could not be drawn: %s", error)
            return {}

    return tensorboard_log(args.output_dir, state.iteration, drawn)
