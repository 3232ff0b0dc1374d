"""Run ``norton_det.cli.search``."""

import runpy

runpy.run_module("norton_det.cli.search", run_name="__main__")
