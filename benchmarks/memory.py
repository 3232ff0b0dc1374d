"""How much memory a piece of work takes beyond what is there before."""

from collections.abc import Callable
from pathlib import Path

import torch

from norton_det.runtime.malloc import give_back_freed_memory

_RESET_PEAK = "5"  # proc_pid_clear_refs(5): the peak becomes what is resident now
_PROCESS = Path("/proc/self")


def peak_memory(run: Callable[[], object], device: str = "cpu") -> float | None:
    """Run once and return the peak in MB, less what was there before: of tensors on a GPU, else of resident pages.

    Networks, images and factors are there before. None: this system does not tell (only Linux does, of the CPU).
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    give_back_freed_memory()
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
    except OSError:
        return None
    run()
    return (_resident("VmHWM") - before) / 1e3


def _resident(what: str) -> int:
    """Return one of the kernel's figures on this process, in kB."""
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return int(lines[what].split()[0])
