"""torchvision's weights that cannot be downloaded: one line that says where the file belongs."""

from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import torch
from conftest import Refused, fill, tool

import norton_det as nd

FAILURES = [
    URLError("Name or service not known"),
    HTTPError("https://x", 403, "Forbidden", None, None),  # type: ignore[arg-type]
    TimeoutError("timed out"),
    ConnectionResetError("reset by peer"),
    IncompleteRead(b""),
]
COMPRESS = ["compress", "--rank", "1", "--output", "OUT/x.safetensors"]
TRAIN = ["train_det", "--model", "fasterrcnn_resnet50_fpn", "--device", "cpu", "--output-dir", "OUT"]

SEARCH = ["search", "--arch", "resnet50", "--target-macs", "2e9"]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Return a function that lets every download fail, where nothing was downloaded before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))

    def fail_with(failure: Exception) -> None:
        def urlopen(*args: Any, **kwargs: Any) -> Any:
            raise failure

        monkeypatch.setattr(torch.hub, "urlopen", urlopen)

    return fail_with


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("name", ["IMAGENET1K_V2", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V1"])
def test_a_failed_download_is_one_line(
    name: str, failure: Exception, offline: Callable[[Exception], None], refused: Refused
) -> None:
    offline(failure)
    cached = f"{torch.hub.get_dir()}/checkpoints/resnet50-"
    refused(lambda: nd.cpresnet50(weights=name), 3, "ResNet50_Weights.", "https://", str(failure), cached)


@pytest.mark.parametrize(
    "words",
    [
        [*COMPRESS, "--arch", "fasterrcnn_cpresnet50_fpn", "--weights", "COCO_V1"],
        [*COMPRESS, "--arch", "resnet50", "--weights", "DEFAULT"],
        [*TRAIN, "--data-path", "SHAPES", "--weights", "COCO_V1"],
        [*TRAIN, "--data-path", "SHAPES", "--weights", "DEFAULT"],
        [*TRAIN, "--data-path", "SHAPES", "--weights-backbone", "IMAGENET1K_V1"],
        [*SEARCH, "--allocate", "--weights", "DEFAULT", "--calibrate", "SHAPES"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_command_without_network_ends_with_one_line(
    words: list[str], offline: Callable[[Exception], None], shapes: Path, tmp_path: Path, refused: Refused
) -> None:
    offline(URLError("Name or service not known"))
    name, *arguments = fill(words, {"SHAPES": shapes, "OUT": tmp_path})
    refused(lambda: tool(name).main(arguments), 3, "cannot be downloaded from https://", "Name or service not known")
    assert not list(tmp_path.glob("*.safetensors"))
