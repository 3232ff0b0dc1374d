"""Run ``norton_det.cli.check_data``."""

import runpy

runpy.run_module("norton_det.cli.check_data", run_name="__main__")
