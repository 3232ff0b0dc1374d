"""An outside judge kills trainings at their file events: extra ``bench``."""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.trainings import Setting, Trainings

TRAININGS = (Setting("cls", 1, epochs=2), Setting("det", 2, epochs=1))
_CHECKSUM = (
    'from safetensors import safe_open; file = safe_open("{out}/run/last.safetensors", "pt"); '
    'print(file.metadata()["norton_det.sha256"])'
)
"""Prints the checksum of the tensors; bytes of files are not compared, for the order of a header's texts is random."""


def main(words: Sequence[str] | None = None) -> int:
    """Judge the trainings; return 1 if one does not come back as it was."""
    parser = argparse.ArgumentParser("benchmarks.faults.outside", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/outside"), help="folder of the judge, a new one")
    parser.add_argument("--points", type=int, default=1000, help="most points at which a training is killed")
    args = parser.parse_args(words)
    judge = shutil.which("ckpt-chaos", path=Path(sys.executable).parent) or shutil.which("ckpt-chaos")
    if judge is None:
        parser.error("ckpt-chaos is not installed; expected: the extra bench")
    args.output.mkdir(parents=True)
    trainings = Trainings(args.output.absolute())
    return max([_judged(judge, trainings, setting, args.points) for setting in TRAININGS])


def _judged(judge: str, trainings: Trainings, setting: Setting, points: int) -> int:
    out = Path("{out}/run")
    words = [*trainings.words(setting, out), "--resume", str(out)]
    options = {
        "--result-cmd": f"{sys.executable} -c '{_CHECKSUM}'",
        "--ranks": setting.processes,
        "--work": trainings.folder / f"{setting.task}{setting.processes}",
        "--max-points": points,
    }
    given = [str(word) for option in options.items() for word in option]
    command = [judge, "run", *given, "--", sys.executable, "-m", "norton_det", *words]
    print(f"{setting}:", flush=True)
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
