"""Run ``norton_det.cli.train_cls``."""

import runpy

runpy.run_module("norton_det.cli.train_cls", run_name="__main__")
