"""The folder of a training run: its name, what tells it from an empty one, and its files."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from norton_det.errors import UsageError
from norton_det.file_locks import locked
from norton_det.files import remove_abandoned
from norton_det.storage import is_folder, is_there, make_folder

CHECKPOINT, METRICS, LOG, ARGUMENTS = "checkpoint.pth", "metrics.jsonl", "log.txt", "args.yaml"
LOCK = ".lock"
MOST_BYTES = 10_000_000
"""Limit of ``args.yaml``, which names all classes each time that a training is resumed."""
LAST, BEST = "last.safetensors", "best.safetensors"
_REPORT = ("report.html", "curves.png", "precision_recall.png", "confusion_matrix.png", "sizes.png", "errors.png")
_RESULTS = ("metrics.json", "coco_instances_results.json", *_REPORT, "predictions.jpg", "worst.jpg")
_WRITTEN = (CHECKPOINT, METRICS, LOG, ARGUMENTS, LAST, BEST, *_RESULTS, "model_[0-9]*.pth", "events.out.tfevents.*")


def new_run_folder(model: str, root: str | Path = "runs") -> Path:
    """Make and return the folder ``MODEL-N`` with the next number; two processes never get the same one.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_folder import new_run_folder
        >>> with tempfile.TemporaryDirectory() as root:
        ...     [new_run_folder("resnet50", root).name for _ in range(2)]
        ['resnet50-1', 'resnet50-2']
    """
    root = Path(root)
    make_folder(root)
    pattern = re.compile(re.escape(model) + r"-(\d+)")
    number = max((int(match[1]) for path in root.iterdir() if (match := pattern.fullmatch(path.name))), default=0)
    while True:
        number += 1
        folder = root / f"{model}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run began just now
            continue
        return folder


def name_of_epoch(epoch: int) -> str:
    """Return the name of the checkpoint that is kept of an epoch, as in torchvision's scripts."""
    return f"model_{epoch}.pth"


def refuse_other_run(folder: str | Path) -> None:
    """Check that a folder does not hold files of another run, or files of the same names that somebody else wrote.

    Raises:
        UsageError: it does; the message says what to do.
    """
    folder = Path(folder)
    for path in (path for pattern in _WRITTEN for path in sorted(folder.glob(pattern))):
        if path.name not in (LOG, METRICS) or path.stat().st_size:  # empty: it failed before it did anything
            raise UsageError(
                f"--output-dir {folder}: holds another run ({path.name}); expected a new folder, --resume {folder} to "
                "go on with it, or --overwrite to replace it"
            )


def has_run(folder: str | Path) -> bool:
    """Tell whether a folder is that of a training."""
    return any(is_there(Path(folder) / name) for name in (CHECKPOINT, METRICS, ARGUMENTS, LOCK))


@contextmanager
def in_use(folder: str | Path) -> Iterator[str | None]:
    """Make and use the folder of a run alone within the block; abandoned temporary files in it are removed.

    If nothing is written into it, a folder that was made is removed at the end.

    Yields:
        None if no other process uses it, else what that process says about itself.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_folder import in_use
        >>> with tempfile.TemporaryDirectory() as root, in_use(f"{root}/run") as holder:
        ...     holder is None
        True
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        with locked(folder / LOCK, f"process {os.getpid()} on {platform.node()} since {since}") as holder:
            if holder is None:
                remove_abandoned(folder)
            yield holder
    finally:
        with suppress(OSError):  # it is not empty
            for path in made:
                path.rmdir()


def is_before_checkpoints(path: str | Path) -> bool:
    """Return whether a folder is that of a run which ended before its first checkpoint; an empty one is.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_folder import is_before_checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     is_before_checkpoints(folder)
        True
    """
    path = Path(path)
    if not is_folder(path) or any(is_there(file) for file in checkpoints_in(path)):
        return False
    return any((path / name).exists() for name in (LOCK, LOG, ARGUMENTS, METRICS)) or not any(path.iterdir())


def remove_run(folder: str | Path) -> None:
    """Remove the files that a training writes, the newest checkpoint last; others are left."""
    for pattern in reversed(_WRITTEN):
        for path in Path(folder).glob(pattern):
            path.unlink()


def checkpoint_in(path: str | Path) -> Path:
    """Return the checkpoint that ``--resume`` names: a file, or the last one in the folder of a run.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_folder import checkpoint_in
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoint_in(folder).name, checkpoint_in(f"{folder}/model_3.pth").name
        ('checkpoint.pth', 'model_3.pth')
    """
    return checkpoints_in(path)[0]


def checkpoints_in(path: str | Path) -> list[Path]:
    """Return the checkpoint that ``--resume`` names, and of a folder the older ones after it, the newest first.

    Example:
        >>> import tempfile
        >>> from norton_det.runtime.run_folder import checkpoints_in
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for epoch in (9, 10):
        ...         Path(folder, f"model_{epoch}.pth").touch()
        ...     [path.name for path in checkpoints_in(folder)]
        ['checkpoint.pth', 'model_10.pth', 'model_9.pth']
    """
    path = Path(path)
    if not is_folder(path):
        return [path]
    epochs = {int(match[1]): file for file in path.iterdir() if (match := re.fullmatch(r"model_(\d+)\.pth", file.name))}
    return [path / CHECKPOINT, *(epochs[epoch] for epoch in sorted(epochs, reverse=True))]
