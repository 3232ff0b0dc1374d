"""Run ``norton_det.cli.complexity``."""

import runpy

runpy.run_module("norton_det.cli.complexity", run_name="__main__")
