"""Run ``norton_det.cli.accuracy``."""

import runpy

runpy.run_module("norton_det.cli.accuracy", run_name="__main__")
