import runpy
import sys

sys.path.insert(0, f"{sys.path[0]}/..")  # benchmarks/ is in the checkout, not in the package
runpy.run_module("benchmarks.run", run_name=__name__)
