"""Memory of the C library: whether freed memory is kept for the next allocation or returned to the system."""

import ctypes
import platform

_KEEP_ALL = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""Parameters of ``mallopt`` (glibc's malloc.h), with the values that return no memory to the system.

All threads share what is free: a thread with memory of its own would keep what it frees from the others.
"""


def keep_freed_memory() -> bool:
    """Keep the memory that this process frees, for its next allocations. All commands of the package do this.

    By default glibc returns every buffer of more than 32 MB to the system when it is freed, and the system clears its
    pages when they are allocated again. For networks on the CPU with large images or batches, clearing can take longer
    than the arithmetic. With this setting the process stays as large as it has ever been.

    Returns:
        Whether the setting was made. It exists only in glibc on Linux; elsewhere this function does nothing.

    Example:
        >>> from norton_det.runtime.malloc import keep_freed_memory
        >>> kept = keep_freed_memory()
    """
    return _is_glibc() and all(ctypes.CDLL(None).mallopt(*pair) == 1 for pair in _KEEP_ALL.values())


def give_back_freed_memory() -> bool:
    """Return all memory that is free at the moment to the system.

    Returns:
        Whether the C library supports this; only glibc does.
    """
    if not _is_glibc():
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
