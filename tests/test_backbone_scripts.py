"""The scripts of the documentation: they are short, they are what a page shows, and they run on generated data."""

import re
import runpy
from pathlib import Path

import pytest

import norton_det as nd
from norton_det.structure.settings import spec_from_configuration

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "scripts").glob("*.py"))
PAGE = "".join((ROOT / "docs" / name).read_text() for name in ("backbones.md", "export.md"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "r50.safetensors"
    spec = spec_from_configuration("resnet50", 1, "[0.]+[0.5]*3+[0.9]*16")
    nd.save(nd.build(spec), spec, path)
    return path


def test_there_are_scripts() -> None:
    assert {path.stem for path in SCRIPTS} == {
        *("export_classifier", "own_training", "retinanet", "segmentation", "timm_features")
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_shown_and_runs(
    script: Path, weights: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = script.read_text()
    assert len(text.splitlines()) <= 20
    assert text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "r50.safetensors").symlink_to(weights)
    (tmp_path / "shapes").symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(script))
    if "loss" in names:
        assert names["loss"].isfinite()
    written = {path.name for path in tmp_path.iterdir()} - {"r50.safetensors", "shapes"}
    named = set(re.findall(r'"(\w+\.(?:onnx|pth|safetensors))"', text))
    assert written == named - {"r50.safetensors"}
