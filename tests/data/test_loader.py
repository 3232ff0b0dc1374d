"""Processes that read data: they leave SIGTERM to the training process, and end with it whatever ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT


def test_readers_ignore_sigterm_and_end_with_the_process_that_reads() -> None:
    script = Path(__file__).with_name("reading_process.py")
    options = {"env": ENVIRONMENT, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, script], **options)
    try:
        lines = process.communicate(timeout=60)[1].splitlines()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the process waits for those that read")
    assert lines[0] == "True True"
    assert lines[-1] == "RuntimeError: failed while others read"
    assert process.returncode == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left of the group
