"""What the training commands share: their arguments, their checkpoint, and the state before the first epoch.

Flags have the names and meanings of torchvision's reference scripts. Where the two scripts differ in a default, the
command sets its own.
"""

import argparse
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from norton_det.checkpoint import read_network
from norton_det.cli.common import Parser
from norton_det.cli.numbers import FACTOR, FRACTION, SEED, Number, whole
from norton_det.cli.options import Group, add_device, add_implementation
from norton_det.cli.training_state import OF_OPTIMIZER, OF_SCHEDULE, make_state
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.models.tensor_files import read_file
from norton_det.models.weights import load_state
from norton_det.runtime.device import check_device
from norton_det.runtime.run_folder import checkpoints_in, is_before_checkpoints
from norton_det.runtime.tensorboard import check_tensorboard
from norton_det.spec import Spec
from norton_det.structure.build import build_checked
from norton_det.training import TrainingState
from norton_det.training.fit import KEEP
from norton_det.training.implementations import AUTO
from norton_det.training.optim import OPTIMIZERS, SCHEDULES

logger = logging.getLogger(__name__)

FREE = {"cache_dataset", "command", "config", "data_path", "device", "dist_url", "implementations", "model"}
FREE |= {
    "keep",
    "log_every",
    "no_plots",
    "output_dir",
    "overwrite",
    "patience",
    "print_freq",
    "reset_schedule",
    "resume",
    "start_epoch",
    "tensorboard",
    "test_only",
    "weights",
    "workers",
    "world_size",
}
"""Arguments that may change when a training is resumed."""
_RENAMED = {"form": "implementation", "forms": "implementations"}
"""Arguments in checkpoints of the first version, and their names now."""
_RESTORED = {*OF_OPTIMIZER, *OF_SCHEDULE.values(), "lr_scheduler"}
"""Arguments whose values are in a checkpoint's optimizer and schedule; new ones need ``--reset-schedule``."""
_FIXED = {"opt", "lr_schedule_by"}
"""Arguments without which a checkpoint's optimizer and schedule cannot be restored."""


def add_optimiser(parser: Parser) -> Group:
    """Add what an update is; return the group."""
    group = parser.add_argument_group("optimiser")
    add = group.add_argument
    add("-b", "--batch-size", type=whole(1), metavar="N", help="images in a batch of each process")
    add("--epochs", type=whole(1), metavar="N", help="total number of epochs")
    add("--opt", default="sgd", type=str.lower, choices=OPTIMIZERS, metavar="NAME", help="optimizer")
    add("--momentum", default=0.9, type=FRACTION, metavar="M", help="of sgd and rmsprop")
    add("--wd", "--weight-decay", default=1e-4, type=FACTOR, metavar="W", dest="weight_decay", help="weight decay")
    add("--norm-weight-decay", type=FACTOR, metavar="W", help="of normalisation layers (default: --wd)")
    add(
        "--clip-grad-norm",
        type=Number(0, 1e9, above=True),
        metavar="N",
        help="limit of the gradient's norm (default: no limit)",
    )
    return group


def add_schedule(parser: Parser) -> Group:
    """Add what sets the learning rate, but for ``--lr``; return the group."""
    group = parser.add_argument_group("learning rate")
    add = group.add_argument
    add("--lr-scheduler", type=str.lower, choices=SCHEDULES, metavar="NAME", help="schedule")
    add("--lr-step-size", type=whole(1), metavar="N", help="epochs of steplr")
    add("--lr-steps", nargs="+", type=whole(0), metavar="N", help="epochs of multisteplr")
    add("--lr-gamma", default=0.1, type=FACTOR, metavar="G", help="factor of steplr, multisteplr and exponentiallr")
    return group


def add_moving_average(parser: Parser) -> None:
    """Add the moving average."""
    add = parser.add_argument_group("moving average").add_argument
    add("--model-ema", action="store_true", help="evaluate and write a moving average of the network")
    add(
        "--model-ema-steps",
        default=32,
        type=whole(1),
        metavar="N",
        help="updates of the network for one of the average",
    )
    add("--model-ema-decay", default=0.99998, type=FRACTION, metavar="D", help="by torchvision's rule")


def add_computation(parser: Parser) -> Group:
    """Add where and how it is computed; return the group."""
    group = parser.add_argument_group("computation")
    add = group.add_argument
    add_device(group)
    add("--amp", action="store_true", help="mixed precision")
    add_implementation(group, AUTO)
    add("--sync-bn", action="store_true", help="batch norm over all processes")
    add("--use-deterministic-algorithms", action="store_true", help="only algorithms that repeat exactly")
    add("--dist-url", default="env://", metavar="URL", help="how processes find each other")
    add(
        "--world-size",
        default=1,
        type=whole(0),
        metavar="N",
        help="ignored; the number of processes is set by torchrun",
    )
    add("--seed", default=0, type=SEED, metavar="K", help="of weights, order and augmentation")
    return group


def add_output(parser: Parser) -> Group:
    """Add what is written, and where a training starts; return the group."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    text = "folder for the files (default: a new one, runs/MODEL-N; with --resume, the same as before)"
    add("--output-dir", metavar="DIR", help=text)
    add("--overwrite", action="store_true", help="replace the run that --output-dir holds")
    add("--resume", default="", metavar="DIR|FILE", help="run or checkpoint to go on from, with the same other flags")
    add("--reset-schedule", action="store_true", help="with --resume, let new --lr, --lr-steps, --wd etc. take effect")
    add("--start-epoch", "--start_epoch", default=0, type=whole(0), metavar="N", help="number of the first epoch")
    add("--test-only", action="store_true", help="evaluate the network of --resume or --weights, and stop")
    add(
        "--patience",
        type=whole(1),
        metavar="N",
        help="end after N evaluations without a better result (default: never)",
    )
    text = "checkpoints that are kept: few, of the last epoch, the one before and the best; or all, of each epoch"
    add("--keep", default="few", choices=KEEP, metavar="NAME", help=text)
    add("--print-freq", type=whole(1), metavar="N", help="iterations between log lines")
    text = "iterations between lines of metrics.jsonl and TensorBoard (default: --print-freq)"
    add("--log-every", type=whole(1), metavar="N", help=text)
    add("--tensorboard", action="store_true", help="write TensorBoard's log to --output-dir as well")
    add("--no-plots", action="store_true", help="do not draw pictures and a report at the end")
    return group


def check_training(args: argparse.Namespace) -> None:
    """Refuse at once what would fail late.

    Raises:
        UsageError: an argument does not fit another, or the device is not available.
    """
    make_state(args, nn.Linear(1, 1), Spec("none", 1), torch.device("cpu"), images=1, lr=1e-3)
    if args.reset_schedule and not args.resume:
        raise UsageError("--reset-schedule without --resume; expected the checkpoint of a training")
    check_device(args.device)
    if args.sync_bn and not args.device.startswith("cuda"):
        raise UsageError(f"--sync-bn with --device {args.device}: expected cuda, where torch has it")
    if args.tensorboard:
        check_tensorboard()


def _is_yet_to_begin(resume: str, output: str) -> bool:
    """Tell whether a run goes on in its own folder, which is not there: one command then begins it and goes on."""
    return bool(output) and not os.path.lexists(resume) and Path(resume).absolute() == Path(output).absolute()


class Checkpoint:
    """The file of ``--resume``, read once.

    Attributes:
        path: of the file.
        content: of the file.
        args: the arguments with which the training began, by their names now.
    """

    def __init__(self, path: str) -> None:
        self.path, self.content = path, read_file(path)
        args: Any = self.content.get("args", {})
        if not isinstance(args, Mapping):
            raise DataError(f"{path}: args is a {type(args).__name__}; expected the arguments of a training")
        self.args: dict[str, Any] = {_RENAMED.get(name, str(name)): value for name, value in args.items()}

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Checkpoint | None":
        """Return the checkpoint of a command's arguments, None without ``--resume``.

        Of a folder it is the newest one that is whole; a warning names those that are not. If the run ended before its
        first checkpoint, or ``--output-dir`` is the same folder and does not exist yet, there is none: it begins at its
        start.

        Raises:
            DataError: the file is missing or damaged, or every one in the folder is.
            UsageError: the learning rate, its schedule or the optimizer is another one than in the file.
        """
        if not args.resume:
            return None
        if not args.test_only and _is_yet_to_begin(args.resume, args.output_dir):
            logger.info("%s: does not exist yet; the training begins at its start", args.resume)
            return None
        if not args.test_only and is_before_checkpoints(args.resume):
            logger.info("%s: ended before its first checkpoint; the training begins at its start", args.resume)
            return None
        checkpoint = cls._newest(checkpoints_in(args.resume))
        args.resume = str(checkpoint.path)
        if not args.test_only:
            checkpoint._check_schedule(args)
        return checkpoint

    @classmethod
    def _newest(cls, paths: Sequence[Path]) -> "Checkpoint":
        """Return the first checkpoint that can be read."""
        for path in paths[:-1]:
            try:
                return cls(str(path))
            except DataError as error:
                logger.warning("%s; skipped, the next older one is %s", error, paths[paths.index(path) + 1].name)
        try:
            return cls(str(paths[-1]))
        except DataError as error:
            others = checkpoints_in(paths[-1].parent)[1:] if len(paths) == 1 else []
            hint = f"; --resume {paths[-1].parent} takes the newest one that is whole" if others else ""
            raise DataError(f"{error}{hint}") from None

    def _changed(self, args: argparse.Namespace, names: Collection[str]) -> list[str]:
        return [n for n, value in vars(args).items() if n in names and n in self.args and value != self.args[n]]

    def _check_schedule(self, args: argparse.Namespace) -> None:
        for name in self._changed(args, _FIXED):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is {getattr(args, name)}; {self.path} was trained with {self.args[name]}")
        restored = _RESTORED | ({"epochs"} if args.lr_scheduler == "cosineannealinglr" else set())
        changed = self._changed(args, restored)
        if changed and not args.reset_schedule:
            flags = [f"--{n.replace('_', '-')} is {getattr(args, n)}, was {self.args[n]}" for n in changed]
            raise UsageError(f"{self.path}: {'; '.join(flags)}; expected the same, or --reset-schedule to change it")

    def network(self) -> tuple[nn.Module, Spec]:
        """Return the network and its spec.

        Raises:
            DataError: the file has no spec, or its weights do not fit.
        """
        spec, tensors = read_network(self.path, content=self.content)
        try:
            network = build_checked(spec, ARCHITECTURES[spec.arch], lambda net: load_state(net, tensors, self.path))
        except UsageError as error:
            raise DataError(f"{self.path}: spec cannot be built: {error}") from None
        load_state(network.module, tensors, self.path)
        return network.module, spec

    def restore(self, state: TrainingState, args: argparse.Namespace, free: Collection[str]) -> None:
        """Bring a training back to the state in the file; warn of arguments that would make it another training.

        Args:
            state: before the first epoch.
            args: of the run that resumes.
            free: names of arguments that may change.

        Raises:
            DataError: the file is no training checkpoint, or one of another network or optimizer.
        """
        state.restore(self.content, self.path, reset_schedule=args.reset_schedule)
        for name in self._changed(args, vars(args).keys() - set(free)):
            logger.warning("%s: was trained with %s %s, now %s", self.path, name, self.args[name], getattr(args, name))


def kept_implementations(checkpoint: Checkpoint | None) -> Mapping[str, str]:
    """Return the implementations that "auto" chose before, by the layers' names."""
    return {} if checkpoint is None else checkpoint.args.get("implementations") or {}
