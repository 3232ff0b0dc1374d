"""Run ``norton_det.cli.eval_cls``."""

import runpy

runpy.run_module("norton_det.cli.eval_cls", run_name="__main__")
