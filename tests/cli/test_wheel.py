"""The wheel, built without network, and what is in it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, TOOLS

import norton_det

ROOT = TOOLS.parent
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "norton_det", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel that was unpacked, built from a copy: building leaves files in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources, built, unpacked = (folder / name for name in ("sources", "built", "unpacked"))
    sources.mkdir()
    built.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, sources / name)
    command = [sys.executable, "-c", BUILD, str(built)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "would be ignored" not in done.stderr
    (file,) = built.iterdir()
    zipfile.ZipFile(file).extractall(unpacked)
    return unpacked


def files(folder: Path, *patterns: str) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for pattern in patterns for path in folder.rglob(pattern)}


def test_the_wheel_has_everything(wheel: Path) -> None:
    configs = files(ROOT / "configs", "*.yaml")
    assert len(configs) > 30
    assert files(wheel / "norton_det" / "configs", "*.yaml") == configs
    package = files(ROOT / "norton_det", "*.py", "py.typed", "*.csv")
    assert files(wheel / "norton_det", "*.py", "py.typed", "*.csv") == package
    assert Path("py.typed") in package
    assert Path("reporting/published.csv") in package


def test_the_wheel_has_nothing_else(wheel: Path) -> None:
    information = f"norton_det-{norton_det.__version__}.dist-info"
    assert {path.name for path in wheel.iterdir()} == {"norton_det", information}
    assert "norton-det = norton_det.cli.main:main" in (wheel / information / "entry_points.txt").read_text()


def test_published_rows_are_found_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    code = "import norton_det, sys; from norton_det.config import read_config; from norton_det.cli.main import main\n"
    code += "config = read_config('resnet56_73m'); print(norton_det.__file__, config.recipe['epochs'])\n"
    code += "sys.exit(main(['complexity', 'resnet56_73m']))"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == f"{wheel / 'norton_det' / '__init__.py'} 400"
    assert "published: top1 94.0  macs 73.22M  params 0.44M" in lines
