"""Class folders and CIFAR-10: reading, augmentation, batches, what is held out."""

import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from norton_det.data.batching import Batching, hold_out
from norton_det.data.cifar import MemoryImages, normalize, read_cifar, shift_and_mirror
from norton_det.data.image_folder import MEAN, STD
from norton_det.data.imagenet import Preset, read_imagenet
from norton_det.errors import DataError, UsageError
from norton_det.models.tensor_files import SHA256_KEY, read_header, sha256_of


def random_images(count: int) -> MemoryImages:
    """Noise, labelled by number."""
    return MemoryImages(torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.arange(count), ["x"] * count)


def test_shift_and_mirror_equals_one_image_after_the_other() -> None:
    images = random_images(40).images
    shift, mirror = torch.randint(9, (40, 2)), torch.rand(40) < 0.5
    for image, (row, column), mirrored, ours in zip(
        images, shift.tolist(), mirror, shift_and_mirror(images, shift, mirror), strict=True
    ):
        cut = TF.crop(TF.pad(image, [4]), row, column, 32, 32)
        assert torch.equal(ours, TF.horizontal_flip(cut) if mirrored else cut)


def test_normalize_equals_torchvision() -> None:
    images = random_images(5).images
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])(images)
    assert torch.allclose(normalize(images), theirs, atol=1e-6)


def test_every_place_of_the_crop_and_both_sides_come_up() -> None:
    black, white = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    white[0, :, 15, 10] = 255
    data = MemoryImages(torch.cat([black, white]).repeat(600, 1, 1, 1), torch.arange(1200) % 2, ["b", "w"])
    ((images, labels),) = data.training(Batching(1200), 0)
    peak = images[labels == 1, 0].flatten(1).argmax(1)
    rows, columns = peak // 32, peak % 32
    assert set(rows.tolist()) == set(range(11, 20))
    assert set(columns.tolist()) == set(range(6, 15)) | set(range(17, 26))


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_processes_together_see_the_batches_of_one(world_size: int) -> None:
    data = random_images(50)
    whole = list(data.training(Batching(12, seed=5), epoch=2))
    assert len(whole) == 4
    parts = [
        list(data.training(Batching(12 // world_size, 5, rank, world_size), epoch=2)) for rank in range(world_size)
    ]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(images, torch.cat([part[step][0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[step][1] for part in parts]))
    seen = [labels for r in range(world_size) for _, labels in data.evaluation(Batching(7, 0, r, world_size))]
    assert sorted(torch.cat(seen).tolist()) == list(range(50))


def test_an_epoch_has_no_image_twice_and_goes_on_from_any_batch() -> None:
    data, batching = random_images(50), Batching(8, seed=1)
    epoch = list(data.training(batching, 0))
    seen = torch.cat([labels for _, labels in epoch]).tolist()
    assert len(set(seen)) == len(seen) == 48
    rest = list(data.training(batching, 0, start=4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epoch[4:], rest, strict=True))
    other = list(data.training(batching, 1))
    assert not torch.equal(epoch[0][1], other[0][1])


def test_folder_images_do_not_depend_on_who_reads_them(classes: Path) -> None:
    preset = Preset(train_crop_size=24, auto_augment="ta_wide", random_erase=0.5)
    alone = list(read_imagenet(classes, "train", preset=preset).training(Batching(4, 3), 1))
    helped = list(read_imagenet(classes, "train", preset=preset, workers=2).training(Batching(4, 3), 1, start=2))
    assert len(alone) == 6
    assert alone[0][0].shape == (4, 3, 24, 24)
    for (images, labels), (others, same) in zip(alone[2:], helped, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)


def test_evaluation_resizes_and_cuts_the_centre(classes: Path) -> None:
    data = read_imagenet(classes, "val", preset=Preset(val_resize_size=40, val_crop_size=32))
    ((images, labels),) = data.evaluation(Batching(12))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with Image.open(data.samples[5][0]) as picture:
        resized = TF.center_crop(TF.resize(TF.pil_to_tensor(picture), 40, antialias=True), 32)
    assert (normalize(resized[None]) - images[5]).abs().max() < 0.1  # PIL and tensors round differently


def test_class_folders_are_read_as_they_are(classes: Path) -> None:
    data = read_cifar(classes, "train", workers=2)
    assert data.classes == ["black", "grey", "white"]
    assert data.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    with Image.open(classes / "train" / "grey" / "3.png") as picture:
        assert torch.equal(data.images[11], TF.pil_to_tensor(picture))


def test_torchvision_s_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py: Dataset not found or corrupted"):
        read_cifar(tmp_path, "train")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 7]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    data = read_cifar(tmp_path, "train")
    assert data.images.shape == (10, 3, 32, 32)
    assert torch.equal(data.images[8], torch.from_numpy(pixels[0]).view(3, 32, 32))
    assert data.labels.tolist() == [3, 7] * 5
    assert len(read_cifar(tmp_path, "val")) == 2
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        read_cifar(tmp_path, "dev")


def test_the_cache_is_read_as_long_as_the_files_are_the_same(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(classes, folder)
    read_cifar(folder, "train")
    assert sorted(path.name for path in folder.iterdir()) == ["test", "train"], "no cache unless it is wanted"
    first = read_cifar(folder, "train", cache=True)
    with monkeypatch.context() as patch:
        patch.setattr("norton_det.data.cifar._decode", lambda *args: pytest.fail("decoded again"))
        assert torch.equal(read_cifar(folder, "train", cache=True).images, first.images)
    Image.new("RGB", (32, 32), (1, 2, 3)).save(folder / "train" / "black" / "0.png")
    assert read_cifar(folder, "train", cache=True).images[0, :, 0, 0].tolist() == [1, 2, 3]
    cache = folder / "train.cache.safetensors"
    whole = cache.read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    header = read_header(cache)
    images = load_file(cache)["images"].clone()
    others = {"too few": images[:1], "of another type": images.float(), "flat": images.flatten()}
    damage: dict[str, Callable[[], object]] = {
        "no file": lambda: cache.write_text("damaged"),
        "flipped": lambda: cache.write_bytes(flipped),
        **{
            name: partial(save_file, {"images": each}, cache, {**header, SHA256_KEY: sha256_of({"images": each})})
            for name, each in others.items()
        },
        "other": partial(save_file, {"x": images}, cache, dict(header)),
    }
    for name, spoil in damage.items():
        spoil()
        caplog.clear()
        again = read_cifar(folder, "train", cache=True)
        assert torch.equal(again.images, images), name
        assert "train.cache.safetensors: damaged" in caplog.text, name
        assert cache.read_bytes() != flipped
        assert torch.equal(load_file(cache)["images"].clone(), images), name


def test_a_folder_that_is_there_twice_is_refused(classes: Path, tmp_path: Path) -> None:
    shutil.copytree(classes, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "black" / "again").symlink_to("../black")
    with pytest.raises(DataError, match="black/again: is the same folder as "):
        read_cifar(tmp_path / "copy", "train")


def test_held_out_images_are_others_and_always_the_same() -> None:
    kept, held = hold_out(100, 30)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(100))
    assert len(held) == 30
    torch.manual_seed(7)
    assert torch.equal(held, hold_out(100, 30)[1])
    for size in (0, 100):
        with pytest.raises(UsageError, match="holdout is"):
            hold_out(100, size)


def test_what_is_wrong_is_named(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder; expected one with class folders in val/ or test/"):
        read_cifar(tmp_path / "none", "val")
    with pytest.raises(DataError, match="has no train/; expected class folders in it"):
        read_cifar(tmp_path, "train")
    with pytest.raises(UsageError, match="unknown split 'dev'; expected one of: train, val, test"):
        read_cifar(classes, "dev")
    with pytest.raises(UsageError, match="unknown auto_augment 'x'"):
        Preset(auto_augment="x")
    with pytest.raises(UsageError, match="unknown interpolation 'x'"):
        Preset(interpolation="x")
    with pytest.raises(UsageError, match="batch_size is 6 in 2 processes; expected at most 11 in all"):
        Batching(6, world_size=2).steps(11)
    folder = tmp_path / "odd" / "train"
    shutil.copytree(classes / "train", folder)
    Image.new("RGB", (30, 32)).save(folder / "grey" / "2.png")
    with pytest.raises(DataError, match=r"2\.png: is 30x32; expected 32x32"):
        read_cifar(tmp_path / "odd", "train")
    (folder / "grey" / "2.png").write_text("no image")
    with pytest.raises(DataError, match=r"2\.png: cannot be read as an image"):
        read_cifar(tmp_path / "odd", "train", workers=1)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"no class folders with images: .*empty"):
        read_cifar(tmp_path / "odd", "train")
