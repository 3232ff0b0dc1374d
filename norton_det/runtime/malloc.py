"""The C library's allocator: memory that is freed and wanted again in every pass need not go back to the system."""

import ctypes
import platform

_NOTHING_BACK = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0)}
"""Parameters of ``mallopt`` (malloc.h of glibc), and the values with which nothing is given back."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its own use; all tools do.

    By default glibc hands every buffer of more than 32 MB back to the system as soon as it is free, and the system
    clears its pages anew when it is wanted again: in networks on the CPU, with large images or batches, that may take
    longer than the arithmetic. The process then stays as large as it has ever been.

    Returns:
        Whether it could be set: only glibc on Linux has it, elsewhere nothing happens.
    """
    return _is_glibc() and all(ctypes.CDLL(None).mallopt(*pair) == 1 for pair in _NOTHING_BACK.values())


def give_back_freed_memory() -> bool:
    """Hand all memory that is free at the moment back to the system; return whether that could be asked for."""
    if not _is_glibc():
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
