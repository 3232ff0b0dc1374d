"""Run ``benchmarks.report``, from the folder above."""

import pathlib
import runpy
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
runpy.run_module("benchmarks.report", run_name="__main__")
