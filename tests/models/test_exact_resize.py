"""Graphs scale an image to the size to which torchvision scales it, for every size."""

import io
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_det.export.onnx_graph import without_warnings
from norton_det.models.exact_resize import ExactResize, resize_exactly

LIMITS = (24, 32)
SIZES = st.tuples(st.integers(5, 130), st.integers(5, 130))


class Scaled(nn.Module):
    """What a detector does with an image first."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(*LIMITS, [0.0] * 3, [1.0] * 3, **options)
        self.transform.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.transform.resize(image)[0]


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    net = Scaled().eval()
    assert resize_exactly(net)
    assert isinstance(net.transform, ExactResize)
    file: Any = io.BytesIO()
    axes = {"image": {1: "height", 2: "width"}}
    with without_warnings():
        options: dict[str, Any] = {"dynamo": False, "opset_version": 17, "input_names": ["image"]}
        torch.onnx.export(net, (torch.rand(3, 40, 50),), file, dynamic_axes=axes, **options)
        scripted = torch.jit.script(net)
    session = onnxruntime.InferenceSession(file.getvalue())
    return {
        "onnx": lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]),
        "script": scripted,
        "eager": net,
    }


@pytest.mark.parametrize("kind", ["onnx", "script", "eager"])
def test_every_size_is_that_of_torchvision(kind: str, runs: dict[str, Any]) -> None:
    theirs = Scaled().eval()

    @settings(max_examples=150, deadline=None)
    @given(SIZES)
    def check(size: tuple[int, int]) -> None:
        image = torch.rand(3, *size)
        with torch.no_grad():
            torch.testing.assert_close(runs[kind](image), theirs(image), rtol=1e-4, atol=1e-4)

    check()


def test_a_size_for_which_single_precision_is_a_pixel_off(runs: dict[str, Any]) -> None:
    sizes = [(height, width) for height in range(5, 130, 5) for width in range(5, 130, 5)]
    theirs = Scaled().eval()
    with without_warnings():
        traced = torch.jit.script(theirs)
    off = [size for size in sizes if traced(torch.rand(3, *size)).shape != theirs(torch.rand(3, *size)).shape]
    assert off, "or torchvision's own is exact now, and ours can go"
    for size in off:
        assert runs["script"](torch.rand(3, *size)).shape == theirs(torch.rand(3, *size)).shape


def test_fixed_sizes_and_other_networks_stay() -> None:
    net = Scaled(fixed_size=(30, 20))
    assert not resize_exactly(net)
    assert type(net.transform) is GeneralizedRCNNTransform
    assert not resize_exactly(nn.ReLU())
