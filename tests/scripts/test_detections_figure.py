"""The picture at the head of README: what its script draws, from any two detectors."""

from pathlib import Path

from conftest import TINY, Refused
from PIL import Image

import norton_det as nd
from norton_det.builders import make_detector
from scripts.detections_figure import OUTPUT, main


def test_the_picture_shows_both_detectors(tmp_path: Path, refused: Refused) -> None:
    net, spec = make_detector("fasterrcnn_cpresnet50_fpn", num_classes=2, **TINY)
    file, image = tmp_path / "net.safetensors", tmp_path / "image.png"
    nd.save(net, spec, file)
    Image.new("RGB", (80, 60)).save(image)
    words = ["--dense", str(file), "--compressed", str(file), "--image", str(image), "--side", "320"]
    assert main([*words, "--output", str(tmp_path / "drawn.jpg")]) == 0
    with Image.open(tmp_path / "drawn.jpg") as drawn:
        assert drawn.width == 2 * 320 + 4
        assert drawn.height > 240
    refused(lambda: main([*words, "--output", str(tmp_path / "drawn.txt")]), 2, "drawn.txt")


def test_the_picture_of_readme_is_small() -> None:
    assert OUTPUT.stat().st_size < 300_000
