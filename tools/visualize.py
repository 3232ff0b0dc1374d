"""Run ``norton_det.cli.visualize``."""

import runpy

runpy.run_module("norton_det.cli.visualize", run_name="__main__")
