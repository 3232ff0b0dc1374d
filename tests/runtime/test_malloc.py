"""Freed memory is kept: measured by the page faults of a process of its own."""

import platform
import subprocess
import sys

import pytest

from norton_det.runtime.malloc import give_back_freed_memory, keep_freed_memory

FAULTS = """
import resource, torch
from norton_det.runtime.malloc import keep_freed_memory
{keep}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(5)))
"""


def faults(keep: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.slow
def test_memory_is_used_again() -> None:
    assert faults("keep_freed_memory()") < 0.1 * faults("")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    assert not give_back_freed_memory()
