"""The folder of a training run: its name, what tells it from an empty one, and its files."""

import re
from pathlib import Path

from norton_det.errors import UsageError

CHECKPOINT, METRICS, LOG, ARGUMENTS = "checkpoint.pth", "metrics.jsonl", "log.txt", "args.yaml"
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
    root.mkdir(parents=True, exist_ok=True)
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
    """Check that a folder does not hold a run.

    Raises:
        UsageError: it does; the message says what to do.
    """
    folder = Path(folder)
    metrics = folder / METRICS
    for path in (folder / CHECKPOINT, metrics):
        if path.exists() and (path != metrics or metrics.stat().st_size):  # empty: it failed before it did anything
            raise UsageError(
                f"--output-dir {folder}: holds another run ({path.name}); expected a new folder, --resume {folder} to "
                "go on with it, or --overwrite to replace it"
            )


def remove_run(folder: str | Path) -> None:
    """Remove the files that a training writes; others are left."""
    for pattern in _WRITTEN:
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
    path = Path(path)
    return path / CHECKPOINT if path.is_dir() else path
