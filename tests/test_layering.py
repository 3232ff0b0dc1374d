"""Imports point one way, and nothing heavy is imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import norton_det

PACKAGE = Path(norton_det.__file__).parent
# From left to right; a module may import what stands to its left (or, in a folder of its own, beside it).
ORDER = [
    {"errors", "allocator"},
    {"spec", "registry", "timing", "results", "labels", "checks", "regression", "lockstep", "vectors", "tables"},
    {"channels", "moments"},
    {"decompositions", "criteria", "models"},
    {"folding", "measuring", "inference_forms", "batch_norm"},
    {"deploy"},
    {"weights"},
    {"build"},
    {"setting", "calibration", "selection", "complexity"},
    {"cost"},
    {"sensitivity"},
    {"allocation"},
    {"compress"},
    {"checkpoint", "training_forms"},
    {"latency"},
    {"search"},
    {"classifiers", "detection"},
    {"data", "engine", "config", "pareto"},
    {"reconstruction", "benchmarks"},
    {"cli"},
]
PLACE = {name: i for i, names in enumerate(ORDER) for name in names}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("norton_det"):
            found += [node.module] if node.module != "norton_det" else [f"norton_det.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("norton_det")]
    return found


def test_imports_point_one_way() -> None:
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        assert own in PLACE, f"{own} has no place in the order"
        for module in imports(path):
            other = module.split(".")[1]
            assert other == own or PLACE[other] < PLACE[own], f"{path.name} imports {module}"
            checked += 1
    assert checked > 50


def test_heavy_packages_are_imported_when_used() -> None:
    heavy = "['tensorly', 'fvcore', 'pycocotools', 'matplotlib', 'scipy', 'av', 'faster_coco_eval']"
    code = "import sys, norton_det, norton_det.data, norton_det.training\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_tools_do_nothing_on_import() -> None:
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        statements = ast.parse(path.read_text()).body
        loose = [s for s in statements if isinstance(s, ast.Expr) and not isinstance(s.value, ast.Constant)]
        assert not loose, path
