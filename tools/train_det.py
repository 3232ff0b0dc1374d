"""Run ``norton_det.cli.train_det``."""

import runpy

runpy.run_module("norton_det.cli.train_det", run_name="__main__")
