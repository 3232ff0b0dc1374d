"""Run ``norton_det.cli.eval_det``."""

import runpy

runpy.run_module("norton_det.cli.eval_det", run_name="__main__")
