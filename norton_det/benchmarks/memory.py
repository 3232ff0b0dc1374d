"""``python -m norton_det.benchmarks.memory CASE SIDE ARGUMENTS``: write the peak memory of one side of a case."""

import json
import sys

from norton_det.allocator import keep_freed_memory
from norton_det.benchmarks import CASES  # noqa: F401  # the cases are registered on import
from norton_det.benchmarks.compare import run_for_memory

if __name__ == "__main__":
    keep_freed_memory()
    sys.stdout.write(f"{run_for_memory(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))}\n")
