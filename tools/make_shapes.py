"""Run ``norton_det.cli.make_shapes``."""

import runpy

runpy.run_module("norton_det.cli.make_shapes", run_name="__main__")
