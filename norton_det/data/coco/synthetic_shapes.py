"""A generated data set in COCO's format: coloured shapes with boxes, masks and keypoints.

Three classes (circle, square, triangle), each with its range of hues, on a noisy grey background: easy on purpose, so
that every detector learns it within minutes where nothing can be downloaded.
"""

import colorsys
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from norton_det.errors import UsageError

CLASSES = ("circle", "square", "triangle")
KEYPOINTS = ("centre", "top", "right", "bottom", "left")
_SKELETON = [[1, 2], [1, 3], [1, 4], [1, 5]]
_MIN_SIZE = 32
_SUPERSAMPLING = 4
_MAX_SHAPES = 4
_ATTEMPTS = 5
_EMPTY_SHARE = 0.02
_CORNERS = {"circle": 48, "square": 4, "triangle": 3}
_TILT = {"circle": 0.0, "square": np.pi / 6, "triangle": np.pi / 6}

Array = NDArray[np.float64]


def make_shapes(output: str | Path, train: int, val: int, *, size: int = 128, seed: int = 0) -> None:
    """Write a COCO folder: ``train2017/``, ``val2017/`` and ``annotations/`` (instances and person_keypoints).

    The same arguments give the same files; the first N images do not depend on how many follow.

    Args:
        output: the folder to make; it must not exist, or be empty.
        train: number of training images.
        val: number of validation images.
        size: side of the square images in pixels.
        seed: of the generator.

    Raises:
        UsageError: a number is out of range, or the folder holds something.
    """
    output = Path(output)
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, _MIN_SIZE)):
        if value < least:
            raise UsageError(f"{name} is {value}; expected at least {least}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: exists already; expected a new or empty folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        unfinished.chmod(0o755)
        (unfinished / "annotations").mkdir()
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _make_split(unfinished, split, count, size, (seed, number))
        unfinished.replace(output)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def _make_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    folder = root / f"{split}2017"
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in tqdm(range(count), desc=f"{split} images", disable=None, leave=False):
        rng = np.random.default_rng([*seed, i])
        picture, shapes = _draw_image(rng, size)
        name = f"{i + 1:012d}.png"
        picture.save(folder / name)
        images.append({"id": i + 1, "file_name": name, "width": size, "height": size})
        for category, outline, keypoints in shapes:
            annotations.append(_annotation(len(annotations) + 1, i + 1, category, outline, keypoints))
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    keypoint_categories = [{**c, "keypoints": list(KEYPOINTS), "skeleton": _SKELETON} for c in categories]
    plain = [{k: v for k, v in a.items() if "keypoints" not in k} for a in annotations]
    for kind, anns, cats in (
        ("instances", plain, categories),
        ("person_keypoints", annotations, keypoint_categories),
    ):
        content = {
            "info": {"description": "generated shapes"},
            "images": images,
            "annotations": anns,
            "categories": cats,
        }
        (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))


def _draw_image(rng: Generator, size: int) -> tuple[Image.Image, list[tuple[int, Array, Array]]]:
    """Return a picture and, for each shape in it, its class index, outline (P, 2) and keypoints (5, 2) in pixels."""
    background = np.full(3, rng.integers(64, 192))
    picture = Image.new("RGB", (size * _SUPERSAMPLING,) * 2, tuple(int(v) for v in background))
    draw = ImageDraw.Draw(picture)
    shapes: list[tuple[int, Array, Array]] = []
    boxes: list[tuple[Array, Array]] = []
    wanted = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, _MAX_SHAPES + 1))
    for _ in range(_ATTEMPTS * wanted):
        if len(shapes) == wanted:
            break
        category, outline, keypoints = _shape(rng, size)
        low, high = outline.min(0), outline.max(0)
        if any((low < other_high).all() and (other_low < high).all() for other_low, other_high in boxes):
            continue  # would hide another one
        boxes.append((low, high))
        shapes.append((category, outline, keypoints))
        colour = _colour(rng, category)
        draw.polygon([(float(x), float(y)) for x, y in outline * _SUPERSAMPLING], fill=colour)
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    noisy = pixels + rng.normal(0, 8, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), shapes


def _shape(rng: Generator, size: int) -> tuple[int, Array, Array]:
    category = int(rng.integers(len(CLASSES)))
    name = CLASSES[category]
    radius = size * rng.uniform(0.12, 0.24)
    centre = rng.uniform(radius + 1, size - radius - 1, 2)
    tilt = rng.uniform(-1, 1) * _TILT[name]
    angles = tilt - np.pi / 2 + 2 * np.pi * np.arange(_CORNERS[name]) / _CORNERS[name]  # the first corner is the top
    outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    # The four outer keypoints: where rays from the centre, tilted along, meet the outline.
    rays = tilt - np.pi / 2 + np.pi / 2 * np.arange(4)
    half = np.pi / _CORNERS[name]
    reach = radius * np.cos(half) / np.cos((rays - angles[0]) % (2 * half) - half)
    outer = centre + reach[:, None] * np.stack([np.cos(rays), np.sin(rays)], 1)
    return category, outline, np.concatenate([centre[None], outer])


def _colour(rng: Generator, category: int) -> tuple[int, ...]:
    hue = category / len(CLASSES) + rng.uniform(-0.12, 0.12)
    red_green_blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.5, 1))
    return tuple(round(255 * v) for v in red_green_blue)


def _annotation(number: int, image: int, category: int, outline: Array, keypoints: Array) -> dict[str, Any]:
    low, high = outline.min(0), outline.max(0)
    x, y = outline.T
    area = 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
    return {
        "id": number,
        "image_id": image,
        "category_id": category + 1,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "area": round(area, 2),
        "segmentation": [[round(float(v), 2) for v in outline.flatten()]],
        "iscrowd": 0,
        "num_keypoints": len(keypoints),
        "keypoints": [v for px, py in keypoints for v in (round(float(px), 2), round(float(py), 2), 2)],
    }
