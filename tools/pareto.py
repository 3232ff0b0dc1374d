"""Run ``norton_det.cli.pareto``."""

import runpy

runpy.run_module("norton_det.cli.pareto", run_name="__main__")
