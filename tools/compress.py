"""Run ``norton_det.cli.compress``."""

import runpy

runpy.run_module("norton_det.cli.compress", run_name="__main__")
