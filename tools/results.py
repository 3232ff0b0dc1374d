"""Run ``scripts.results_page``, from the folder above."""

import pathlib
import runpy
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
runpy.run_module("scripts.results_page", run_name="__main__")
