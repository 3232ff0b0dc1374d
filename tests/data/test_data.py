"""COCO folders, the generated shapes, augmentation and batching."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from norton_det.data import AspectRatioBatchSampler, Augment, CocoDataset, make_shapes
from norton_det.data.coco.synthetic_shapes import KEYPOINTS
from norton_det.errors import DataError, UsageError


def test_shapes_are_reproducible_and_consistent(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "again", train=6, val=3, size=64)
    files = sorted(p.relative_to(shapes) for p in shapes.rglob("*") if p.is_file())
    assert len(files) == 13
    assert all((shapes / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    make_shapes(tmp_path / "other", train=6, val=3, size=64, seed=1)
    name = "train2017/000000000001.png"
    assert (shapes / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_boxes_masks_and_keypoints_agree(shapes: Path) -> None:
    data = CocoDataset(shapes, "train", "coco_kp", train=True, masks=True)
    assert (len(data), data.num_classes, data.keypoint_names) == (6, 4, list(KEYPOINTS))
    for image, target in data:
        assert len(target["boxes"]) > 0
        assert image.shape == (3, 64, 64)
        assert 0 <= image.min() <= image.max() <= 1
        for box, mask, points in zip(target["boxes"], target["masks"], target["keypoints"], strict=True):
            rows, columns = mask.nonzero().T
            seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (seen - box).abs().max() <= 1.5
            assert ((points[:, :2] >= box[:2] - 0.02) & (points[:, :2] <= box[2:] + 0.02)).all()
            x, y = points[0, :2].long()
            assert mask[y, x] == 1  # the centre


def test_shapes_refuse_a_used_folder_and_nonsense(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        make_shapes(shapes, 1, 1)
    with pytest.raises(UsageError, match="size is 8; expected at least 32"):
        make_shapes(tmp_path / "x", 1, 1, size=8)
    assert not list(tmp_path.iterdir())


def write_coco(root: Path, annotations: list[dict], images: int = 2) -> Path:
    """Write a folder with 20x10 images."""
    (root / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    entries = []
    for i in range(1, images + 1):
        Image.fromarray(np.full((10, 20), 100, dtype=np.uint8)).save(root / "train2017" / f"{i}.png")
        entries.append({"id": i, "file_name": f"{i}.png", "width": 20, "height": 10})
    for number, annotation in enumerate(annotations):
        annotation.update({"id": number + 1, "image_id": annotation.get("image_id", 1)})
        annotation.setdefault("category_id", 7)
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", 4)
        annotation.setdefault("segmentation", [[1, 1, 5, 1, 5, 5]])
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def test_training_leaves_out_what_it_cannot_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    crowd = {"iscrowd": 1, "segmentation": {"size": [10, 20], "counts": [0, 50, 150]}}
    folder = write_coco(
        tmp_path,
        [
            {"bbox": [1, 1, 4, 4]},
            {"bbox": [2, 2, 0, 5]},
            {"bbox": [18, 2, 10, 5]},
            {"bbox": [25, 2, 3, 3]},
            {"bbox": [0, 0, 20, 10], **crowd},
            {"bbox": [0, 0, 5, 5], "image_id": 2, **crowd},
            {"bbox": [3, 12, 5, 5], "image_id": 3},
        ],
        images=3,
    )
    train = CocoDataset(folder, "train", train=True, masks=True)
    assert (len(train), train.num_classes, train.labels.ids) == (1, 2, {1: 7})
    assert "instances_train2017.json: 3 objects whose box has no area are left out of training" in caplog.text
    image, target = train[0]
    assert image.shape == (3, 10, 20)  # grey becomes RGB
    assert target["boxes"].tolist() == [[1, 1, 5, 5], [18, 2, 20, 7]]
    assert {len(target[name]) for name in ("boxes", "labels", "masks", "area", "iscrowd")} == {2}
    assert len(CocoDataset(folder, "train")) == 3


def test_missing_and_damaged_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        CocoDataset(tmp_path / "none", "train")
    folder = write_coco(tmp_path / "coco", [{"bbox": [1, 1, 4, 4]}])
    with pytest.raises(DataError, match="coco: no images for val are recognised; expected one of: annotations"):
        CocoDataset(folder, "val")
    with pytest.raises(UsageError, match="unknown dataset 'voc'; expected one of: coco, coco_kp"):
        CocoDataset(folder, "train", "voc")
    (folder / "train2017" / "1.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image"):
        CocoDataset(folder, "train")[0]
    for text, message in (
        ("{", "cannot be read: .* expected COCO annotations"),
        ('{"images": []}', "lacks annotations, categories"),
    ):
        (folder / "annotations" / "instances_train2017.json").write_text(text)
        with pytest.raises(DataError, match=message):
            CocoDataset(folder, "train")


def test_flip_moves_everything(shapes: Path) -> None:
    plain = CocoDataset(shapes, "train", "coco_kp", train=True, masks=True)
    flipped = CocoDataset(shapes, "train", "coco_kp", train=True, masks=True)
    flipped.transform = Augment("hflip", plain.keypoint_names, probability=1)
    (image, target), (mirror, moved) = plain[0], flipped[0]
    assert torch.equal(mirror, image.flip(-1))
    assert torch.equal(moved["masks"], target["masks"].flip(-1))
    torch.testing.assert_close(moved["boxes"][:, 0].as_subclass(torch.Tensor), 64 - target["boxes"][:, 2])
    left, right = KEYPOINTS.index("left"), KEYPOINTS.index("right")
    torch.testing.assert_close(moved["keypoints"][:, left, 0], 64 - target["keypoints"][:, right, 0])
    assert (moved["keypoints"][:, left, 0] < moved["keypoints"][:, right, 0]).all()


@pytest.mark.parametrize("preset", ["lsj", "multiscale", "ssd", "ssdlite"])
def test_presets_keep_targets_together(preset: str, shapes: Path) -> None:
    data = CocoDataset(shapes, "train", train=True, masks=True, transform=Augment(preset))
    assert len(data) == 6
    left = 0
    for image, target in data:
        height, width = image.shape[-2:]
        count = len(target["boxes"])
        assert target["masks"].shape == (count, height, width)
        assert len(target["labels"]) == len(target["area"]) == count
        boxes = target["boxes"]
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        left += count
    assert left > 0


def test_presets_that_do_not_know_keypoints() -> None:
    with pytest.raises(UsageError, match="'lsj' does not support keypoints"):
        Augment("lsj", KEYPOINTS)
    with pytest.raises(UsageError, match="unknown data_augmentation 'mixup'"):
        Augment("mixup")


def test_batches_hold_similar_shapes() -> None:
    ratios = [0.5, 2.0] * 10 + [1.0]
    sampler = AspectRatioBatchSampler(ratios, batch_size=3, factor=0, seed=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 7
    flat = [i for batch in batches for i in batch]
    assert len(set(flat)) == len(flat) == 21
    mixed = [b for b in batches if len({ratios[i] >= 1 for i in b}) > 1]
    assert len(mixed) <= 1  # what was left over
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches


@pytest.mark.skipif("NORTON_DATA" not in os.environ, reason="NORTON_DATA does not name the folder with coco_mini")
def test_coco_mini() -> None:
    train = CocoDataset(Path(os.environ["NORTON_DATA"]) / "coco_mini", "train", train=True, masks=True)
    assert train.num_classes == 81
    assert all(len(target["boxes"]) == len(target["masks"]) > 0 for _, target in train)
