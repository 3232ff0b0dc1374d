"""What the tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from norton_det.data import make_shapes

TOOLS = Path(__file__).parent.parent / "tools"
# Settings with which a detector runs in a test's time: tiny images, few proposals.
TINY = {
    "min_size": 64,
    "max_size": 64,
    "anchor_sizes": [[8], [16], [32], [64], [128]],
    **{f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")},
    "box_detections_per_img": 5,
}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small COCO folder."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=6, val=3, size=64)
    return folder
