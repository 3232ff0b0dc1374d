"""Peak memory of a function."""

from collections.abc import Callable
from pathlib import Path

import torch

from norton_det.runtime.malloc import give_back_freed_memory

_RESET_PEAK = "5"  # proc_pid_clear_refs(5): set the peak to the present resident size
_PROCESS = Path("/proc/self")


def peak_memory(run: Callable[[], object], device: str = "cpu") -> float | None:
    """Run a function once and return the increase of the memory at its peak.

    Args:
        run: the function. Networks, images and factors that exist before the run are not counted.
        device: "cuda" for the memory of tensors on the GPU, otherwise that of resident pages.

    Returns:
        MB; None if the system does not report it (for the CPU only Linux does).
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


def _resident(entry: str) -> int:
    """Return an entry of the kernel's status of this process, in kB."""
    lines = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return int(lines[entry].split()[0])
