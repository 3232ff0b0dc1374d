"""For test_broken_input.py: broken_training.py CASES GUARD; CASES is a JSON file of {name: words of a command}.

Run each command in a process of its own, forked when everything is imported. Print {name: [exit code, seconds, whether
a process is left]}; the code of one that is killed after GUARD seconds is -9. Errors of a command go to NAME.log.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from norton_det.cli import train_det  # noqa: F401
from norton_det.cli.main import main


def run(words: list[str], log: Path, guard: float) -> tuple[int, float, bool]:
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # the group has those that read as well
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
        sys.exit(main(words))
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - start > guard:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    seconds = time.monotonic() - start
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return os.waitstatus_to_exitcode(ended[1]), seconds, False
    return os.waitstatus_to_exitcode(ended[1]), seconds, True


if __name__ == "__main__":
    cases = Path(sys.argv[1])
    outcomes = {
        name: run(words, cases.with_name(f"{name}.log"), float(sys.argv[2]))
        for name, words in json.loads(cases.read_text()).items()
    }
    sys.stdout.write(json.dumps(outcomes))
