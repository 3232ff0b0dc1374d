"""Run ``norton_det.cli.demo``."""

import runpy

runpy.run_module("norton_det.cli.demo", run_name="__main__")
