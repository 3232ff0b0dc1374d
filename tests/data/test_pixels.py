"""Pixels: 16 bits, orientations, sizes; files that cannot be read are named."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

from norton_det.data import CocoDataset
from norton_det.data.calibration_set import read_calibration_set
from norton_det.data.coco.checks import check_images
from norton_det.data.imagenet import Preset, read_imagenet
from norton_det.errors import DataError
from norton_det.image_files import read_image, read_rgb
from norton_det.visualization.media import open_images

RAMP = (np.arange(48).reshape(6, 8) * 1394).astype(np.uint16)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pgm(path: Path) -> None:
    path.write_bytes(b"P5\n8 6\n65535\n" + RAMP.astype(">u2").tobytes())


SIXTEEN_BITS: list[tuple[str, Callable[[Path], None]]] = [
    ("a.png", lambda path: Image.fromarray(RAMP).save(path)),
    ("a.tif", lambda path: Image.fromarray(RAMP).save(path)),
    ("b.tif", lambda path: Image.fromarray(RAMP.astype(">u2")).save(path)),
    ("a.pgm", pgm),
]


@pytest.mark.parametrize(("name", "save"), SIXTEEN_BITS, ids=[name for name, _ in SIXTEEN_BITS])
def test_grey_of_16_bits_is_scaled(name: str, save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / name)
    pixels = np.asarray(read_rgb(tmp_path / name))
    assert pixels.shape == (6, 8, 3)
    assert (pixels == np.round(RAMP / 257)[..., None]).all()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """Write the beginning of a PNG of 20000 x 20000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))


def truncated(path: Path) -> None:
    Image.effect_noise((8, 6), 50).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def broken(path: Path) -> None:
    Image.effect_noise((8, 6), 50).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"IDA\xff"))


UNREADABLE: list[tuple[str, Callable[[Path], object], str]] = [
    ("float.tif", lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "floats of 32 bits; expected 8 or"),
    ("int.tif", lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path), "integers of 32 bits; expected 8 or"),
    ("bomb.png", bomb, "exceeds limit"),
    ("truncated.png", truncated, ""),
    ("broken.png", broken, ""),
    ("empty.png", lambda path: path.write_bytes(b""), "cannot identify"),
    ("text.png", lambda path: path.write_text("no image"), "cannot identify"),
    ("none.png", lambda path: None, "No such file"),
]


@pytest.mark.parametrize(("name", "save", "reason"), UNREADABLE, ids=[name for name, *_ in UNREADABLE])
def test_files_that_cannot_be_read_are_named(
    name: str, save: Callable[[Path], object], reason: str, tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path / name
    save(path)
    refused(lambda: read_rgb(path), 3, f"{path}: cannot be read as an image: ", reason)
    if path.exists():
        refused(lambda: list(open_images([path])), 3, f"{path}: cannot be read as an image: ", reason)
        entry = {"id": 1, "file_name": name, "width": 8, "height": 6}
        findings = check_images({"images": [entry], "annotations": [], "categories": []}, tmp_path)
        assert [(f.check, f.severity) for f in findings] == [("unreadable images", "error")]


@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]))
    Image.fromarray((RAMP / 257).astype(np.uint8)).save(path, kind, exif=turned(6))
    content = bytearray(path.read_bytes())
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)))):
        content[place] = byte
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_image(path, lambda name: None).rgb.mode == "RGB"
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017


def assert_equal(image: Image.Image, other: Image.Image) -> None:
    assert image.mode == other.mode
    assert np.array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientations_are_those_of_exif(orientation: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray((RAMP / 257).astype(np.uint8)).save(path, exif=turned(orientation))
    with Image.open(path) as image:
        stored, upright = image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")
    assert_equal(read_rgb(path), stored)
    assert_equal(read_image(path, lambda name: None).rgb, upright)
    assert_equal(read_image(path, lambda name: stored.size if name == path.name else None).rgb, stored)
    assert_equal(read_image(path, lambda name: (1, 1)).rgb, upright)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_are_upright_always(orientation: int, compression: str | None, tmp_path: Path) -> None:
    upright, path = Image.fromarray((RAMP / 257).astype(np.uint8)), tmp_path / "a.tif"
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpositions that undo an orientation
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    stored.save(path, exif=turned(orientation), compression=compression)
    assert_equal(read_rgb(path), upright.convert("RGB"))
    assert_equal(read_image(path, lambda name: None).rgb, upright.convert("RGB"))


def coco(root: Path, size: tuple[int, int], orientation: int = 6) -> Path:
    """Write a folder with an image that is stored with 20 x 10 pixels, and is annotated with another size."""
    for split in ("train", "val"):
        (root / f"{split}2017").mkdir(parents=True)
        pixels = np.arange(600, dtype=np.uint16).reshape(10, 20, 3).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{split}2017" / "a.png", exif=turned(orientation))
        images = [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}]
        objects = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}]
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("size", "told", "finding"),
    [
        ((20, 10), "EXIF orientation 6 and is read as stored, as annotated", ("images rotated by EXIF", "warning")),
        ((10, 20), "EXIF orientation 6 and is turned upright, to the annotated", ("images turned by EXIF", "note")),
    ],
)
def test_pixels_lie_as_the_annotations(
    size: tuple[int, int], told: str, finding: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = coco(tmp_path, size)
    with Image.open(root / "train2017" / "a.png") as image:
        pixels = pil_to_tensor(ImageOps.exif_transpose(image) if size == (10, 20) else image).float() / 255
    for split in ("train", "val"):
        data = CocoDataset(root, split, train=split == "train")
        with caplog.at_level("INFO"):
            caplog.clear()
            for _ in range(2):
                assert torch.equal(data[0][0], pixels)
        assert caplog.text.count("a.png: has " + told) == 1
    (calibration,) = read_calibration_set(root, "fasterrcnn_cpresnet50_fpn", 1)
    assert torch.equal(calibration, pixels)
    annotations = root / "annotations" / "instances_val2017.json"
    (drawn,) = open_images([root / "val2017"], annotations)
    assert torch.equal(drawn.float() / 255, pixels)
    findings = check_images(json.loads(annotations.read_text()), root / "val2017")
    assert [(f.check, f.severity) for f in findings] == [finding]


def test_an_image_of_another_size_is_refused(tmp_path: Path, refused: Refused) -> None:
    root = coco(tmp_path, (40, 20))
    for split in ("train", "val"):
        path = root / f"{split}2017" / "a.png"
        data = CocoDataset(root, split, train=split == "train")
        refused(lambda data=data: data[0], 3, f"{path}: is 10 x 20, annotated as 40 x 20; expected the size")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    (finding,) = check_images(content, root / "val2017")
    assert (finding.check, finding.severity) == ("sizes that differ", "error")


def test_class_folders_are_read_as_they_are_stored(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "thing").mkdir(parents=True)
        path = tmp_path / split / "thing" / "a.png"
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(10, 20, 3).astype(np.uint8)).save(path, exif=turned(6))
    data = read_imagenet(tmp_path, "train", preset=Preset())
    assert read_rgb(data.samples[0][0]).size == (20, 10)


def test_an_image_without_annotations_is_upright(tmp_path: Path) -> None:
    folder = tmp_path / "train2017"
    folder.mkdir()
    Image.new("RGB", (20, 10)).save(folder / "a.png", exif=turned(6))
    (image,) = read_calibration_set(tmp_path, "fasterrcnn_cpresnet50_fpn", 1)
    assert image.shape == (3, 20, 10)
    with pytest.raises(DataError, match=r"no\.json: no such file"):
        list(open_images([folder], tmp_path / "no.json"))
