import runpy
import sys

sys.path.insert(0, f"{sys.path[0]}/..")  # scripts/ is in the checkout, not in the package
runpy.run_module("scripts.results_page", run_name=__name__)
