"""Imports point downwards, a folder's names hide none of its modules, and importing does nothing but define names."""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from source import acting_statements, hidden_modules, import_graph, modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "norton_det"
# From the ground up. A folder imports from itself and from lower floors: from none beside it and none above.
FLOORS = [
    {"errors", "version", "file_locks", "storage"},
    {"formatting", "json_text", "linalg", "yaml_files"},
    {"files"},
    {"registry", "spec", "runtime", "channels", "image_files"},
    {"notation"},
    {"models", "decompositions", "visualization"},
    {"pruning", "structure", "deployment", "data"},
    {"calibration", "cost", "evaluation", "checkpoint", "config"},
    {"search", "builders", "reporting", "export"},
    {"compression", "training", "inference", "adapters"},
    {"norton_det"},  # the public names, in __init__.py
    {"cli"},
    {"__main__"},
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def wrong_imports(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that do not point downwards."""
    edges = [(module, other) for module, imported in graph.items() for other in sorted(imported)]
    return [
        f"{module} imports {other}"
        for module, other in edges
        if folder_of(module) != folder_of(other) and FLOOR[folder_of(module)] <= FLOOR[folder_of(other)]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules of which each imports the next and the last is the first; nothing if there is no such circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def effects_of_importing(folder: Path, names: list[str]) -> list[str]:
    script = Path(__file__).with_name("import_effects.py")
    done = subprocess.run([sys.executable, script, folder, *names], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ours() -> dict[str, Path]:
    """Return the modules of the package, and those of the folders beside it."""
    return modules(PACKAGE) | modules(ROOT / "benchmarks") | modules(ROOT / "scripts")


def test_the_floors_are_the_folders() -> None:
    assert {folder_of(module) for module in modules(PACKAGE)} == FLOOR.keys()


def test_imports_point_downwards_and_in_no_circle() -> None:
    graph = import_graph(PACKAGE)
    assert wrong_imports(graph) == []
    assert circle(graph) == []
    assert sum(map(len, graph.values())) > 400, "the imports are found"


def test_the_package_stands_alone() -> None:
    for path in modules(PACKAGE).values():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"benchmarks", "scripts", "tools", "tests"}, path


def test_architectures_say_what_differs_between_networks() -> None:
    """Outside models/ nothing asks a network or its name what it is: its architecture says so."""
    questions = ("GeneralizedRCNN", 'startswith("keypoint', 'startswith("mask', "image_size ==", '_fpn") in')
    asked = [
        f"{path.name}: {question}"
        for module, path in modules(PACKAGE).items()
        for question in questions
        if folder_of(module) != "models" and question in path.read_text()
    ]
    assert asked == []
    assert any(questions[0] in path.read_text() for path in (PACKAGE / "models").glob("*.py"))


def test_no_name_hides_a_module() -> None:
    assert hidden_modules(PACKAGE) == []


def test_importing_defines_names_and_does_nothing_else() -> None:
    assert {str(path): found for path in ours().values() if (found := acting_statements(path.read_text()))} == {}
    assert effects_of_importing(ROOT, list(ours())) == []


def test_tools_are_shims() -> None:
    files = sorted((ROOT / "tools").glob("*.py"))
    assert len(files) >= 15
    for path in files:
        _, *statements = ast.parse(path.read_text()).body
        assert 0 < len(statements) <= 5, path
        assert not any(isinstance(statement, ast.FunctionDef | ast.ClassDef) for statement in statements), path


def test_heavy_packages_are_imported_when_used() -> None:
    heavy = "['tensorly', 'fvcore', 'pycocotools', 'matplotlib', 'scipy', 'av', 'faster_coco_eval']"
    code = "import sys, norton_det, norton_det.data, norton_det.training\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# The checks themselves, on sources that are wrong.


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Return a function that writes a package of files with these sources."""

    def package(sources: dict[str, str]) -> Path:
        for name, source in {"__init__.py": "", **sources}.items():
            path = tmp_path / "norton_det" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "norton_det"

    return package


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/vgg.py", "from norton_det.decompositions.cp import CPConv2d"),  # beside it
        ("models/vgg.py", "import norton_det.cost.budget"),  # above
        ("models/vgg.py", "from norton_det.cost import budget"),
        ("models/vgg.py", "from norton_det import cost"),
        ("models/vgg.py", "from norton_det import compress"),  # a public name
        ("models/vgg.py", "from .. import cost"),
        ("models/vgg.py", "from ..cost.budget import Budget"),
        ("models/vgg.py", "def late():\n    from norton_det.cost import budget"),
        ("models/vgg.py", "try:\n    import norton_det.cost\nexcept ImportError:\n    pass"),
        ("errors.py", "from norton_det import files"),
    ],
)
def test_an_import_that_points_elsewhere_is_found(
    file: str, source: str, write: Callable[[dict[str, str]], Path]
) -> None:
    right = {"cost/__init__.py": "", "cost/budget.py": "", "decompositions/cp.py": "", "errors.py": "", "files.py": ""}
    assert wrong_imports(import_graph(write({**right, "models/vgg.py": "from norton_det import errors"}))) == []
    (wrong,) = wrong_imports(import_graph(write({**right, "models/vgg.py": "", file: source})))
    assert wrong.startswith(f"norton_det.{file.removesuffix('.py').replace('/', '.')} imports norton_det")


def test_imports_that_are_right(write: Callable[[dict[str, str]], Path]) -> None:
    graph = import_graph(
        write(
            {
                "models/vgg.py": "from . import resnet\nfrom norton_det.errors import UsageError\nimport torch",
                "models/resnet.py": "import typing\nif typing.TYPE_CHECKING:\n    import norton_det.models.vgg",
                "errors.py": "",
                "cli/main.py": "import norton_det as nd",
            }
        )
    )
    assert wrong_imports(graph) == circle(graph) == []
    assert graph["norton_det.models.vgg"] == {"norton_det.models.resnet", "norton_det.errors"}
    assert graph["norton_det.cli.main"] == {"norton_det"}


@pytest.mark.parametrize("late", [False, True])
def test_a_circle_in_a_folder_is_found(late: bool, write: Callable[[dict[str, str]], Path]) -> None:
    back = "from norton_det.models.vgg import VGG"
    sources = {
        "models/vgg.py": "import norton_det.models.resnet",
        "models/resnet.py": "from norton_det.models.weights import read",
        "models/weights.py": f"def read():\n    {back}" if late else back,
    }
    found = circle(import_graph(write(sources)))
    assert found[0] == found[-1]
    assert set(found) == {f"norton_det.models.{name}" for name in ("vgg", "resnet", "weights")}


@pytest.mark.parametrize(
    "source",
    [
        "from norton_det.deployment.deploy import deploy",
        "from .deploy import deploy",
        "from norton_det.deployment.deploy import redeploy as deploy",
        "def deploy(): ...",
        "deploy = 3",
    ],
)
def test_a_name_that_hides_a_module_is_found(source: str, write: Callable[[dict[str, str]], Path]) -> None:
    sources = {"deployment/deploy.py": "", "deployment/__init__.py": source}
    assert hidden_modules(write(sources)) == ["norton_det.deployment.deploy"]
    sources["deployment/__init__.py"] = "from norton_det.deployment import deploy\nother = 3"
    assert hidden_modules(write(sources)) == [], "the module itself"


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "try:\n    import x\nexcept ImportError:\n    x = None",
        "with a:\n    b = 1",
        "for a in b:\n    a.append(1)",
    ],
)
def test_a_statement_that_acts_is_found(source: str) -> None:
    assert acting_statements(f'"""Docstring."""\nimport a\nX = 1\nX.register("a", 1)\n{source}') == [source]


ACTS = {
    "reads": ("x = open(__file__)", "open"),
    "reads_path": ("import pathlib\nx = pathlib.Path(__file__).read_text()", "open"),
    "reads_in_a_class": ("import pathlib\nclass A:\n    x = pathlib.Path(__file__).read_text()", "open"),
    "reads_in_a_function": ("def f():\n    return open(__file__)\nx = f()", "open"),
    "writes": ("import pathlib\nx = pathlib.Path(__file__ + '.txt').write_text('')", "open"),
    "makes": ("import pathlib\nx = pathlib.Path(__file__ + '.d').mkdir()", "os.mkdir"),
    "starts": ("import subprocess, sys\nx = subprocess.run([sys.executable, '-c', ''])", "subprocess.Popen"),
    "sets": ("import os\nos.environ['X'] = ''", "os.putenv"),
    "shows": ("print('here')", "output here"),
    "loads": ("import torch\nx = torch.load(__file__.replace('loads.py', 'net.pt'))", "open"),
}


def test_effects_of_importing_are_found(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "net.pt")
    for name, (source, _) in ACTS.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "harmless.py").write_text("def f():\n    return open(__file__)\nif __name__ == '__main__':\n    f()")
    (tmp_path / "imports.py").write_text("import reads, argparse\nreads.x.close()")
    found = effects_of_importing(tmp_path, [*ACTS, "harmless", "imports"])
    for name, (_, event) in ACTS.items():
        assert any(effect.startswith(f"{name}.py: {event}") for effect in found), name
    assert not [effect for effect in found if effect.startswith(("harmless", "imports"))]
