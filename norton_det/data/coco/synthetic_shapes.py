"""A generated data set in COCO's format: coloured shapes with boxes, masks and keypoints.

It has three classes (circle, square, triangle), each with its own range of hues, on a noisy grey background. It is easy
on purpose: every detector learns it within minutes, and nothing has to be downloaded.
"""

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from norton_det.errors import UsageError
from norton_det.files import new_folder

CLASSES = ("circle", "square", "triangle")
KEYPOINTS = ("centre", "top", "right", "bottom", "left")
_SKELETON = [[1, 2], [1, 3], [1, 4], [1, 5]]
_MIN_SIZE = 32
_SUPERSAMPLING = 4
_MAX_SHAPES = 4
_ATTEMPTS = 5
_EMPTY_FRACTION = 0.02  # of the images, which have no shape
_CORNERS = {"circle": 48, "square": 4, "triangle": 3}
_TILT = {"circle": 0.0, "square": np.pi / 6, "triangle": np.pi / 6}

Array = NDArray[np.float64]


def make_shapes(output: str | Path, train: int, val: int, *, size: int = 128, seed: int = 0) -> None:
    """Write a COCO folder: ``train2017/``, ``val2017/`` and ``annotations/`` (instances and person_keypoints).

    The same arguments give the same files. The first N images do not depend on the number of images.

    Args:
        output: the folder that is made; it must be empty or not exist.
        train: number of training images.
        val: number of validation images.
        size: side length of the square images in pixels.
        seed: seed of the random numbers.

    Raises:
        UsageError: a number is out of range, or the folder is not empty.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from norton_det.data import make_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     make_shapes(f"{folder}/shapes", train=2, val=1, size=32)
        ...     sorted(path.name for path in Path(folder, "shapes").iterdir())
        ['annotations', 'train2017', 'val2017']
    """
    for name, value, minimum in (("train", train, 1), ("val", val, 1), ("size", size, _MIN_SIZE)):
        if value < minimum:
            raise UsageError(f"{name} is {value}; expected at least {minimum}")
    with new_folder(output) as folder:
        (folder / "annotations").mkdir()
        for index, (split, count) in enumerate((("train", train), ("val", val))):
            _make_split(folder, split, count, size, (seed, index))


def _make_split(root: Path, split: str, count: int, size: int, seed: tuple[int, int]) -> None:
    folder = root / f"{split}2017"
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in tqdm(range(count), desc=f"{split} images", disable=None, leave=False):
        rng = np.random.default_rng([*seed, i])
        image, shapes = _draw_image(rng, size)
        name = f"{i + 1:012d}.png"
        image.save(folder / name)
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
    """Return an image and, for each shape in it, its class index, outline (P, 2) and keypoints (5, 2) in pixels."""
    background = np.full(3, rng.integers(64, 192))
    image = Image.new("RGB", (size * _SUPERSAMPLING,) * 2, tuple(int(v) for v in background))
    draw = ImageDraw.Draw(image)
    shapes: list[tuple[int, Array, Array]] = []
    boxes: list[tuple[Array, Array]] = []
    count = 0 if rng.random() < _EMPTY_FRACTION else int(rng.integers(1, _MAX_SHAPES + 1))
    for _ in range(_ATTEMPTS * count):
        if len(shapes) == count:
            break
        category, outline, keypoints = _shape(rng, size)
        low, high = outline.min(0), outline.max(0)
        if any((low < other_high).all() and (other_low < high).all() for other_low, other_high in boxes):
            continue  # it would cover another shape
        boxes.append((low, high))
        shapes.append((category, outline, keypoints))
        colour = _colour(rng, category)
        draw.polygon([(float(x), float(y)) for x, y in outline * _SUPERSAMPLING], fill=colour)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    noisy = pixels + rng.normal(0, 8, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), shapes


def _shape(rng: Generator, size: int) -> tuple[int, Array, Array]:
    category = int(rng.integers(len(CLASSES)))
    name = CLASSES[category]
    radius = size * rng.uniform(0.12, 0.24)
    centre = rng.uniform(radius + 1, size - radius - 1, 2)
    tilt = rng.uniform(-1, 1) * _TILT[name]
    angles = tilt - np.pi / 2 + 2 * np.pi * np.arange(_CORNERS[name]) / _CORNERS[name]  # the first corner is at the top
    outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    # The four outer keypoints are the points of the outline in four directions from the centre, tilted with the shape.
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
