"""What docs/promises.md does not promise: each test says what one would wish, and fails."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import norton_det as nd
from benchmarks.faults.trainings import Setting, Trainings
from norton_det.cli.training_run import coco_facts
from norton_det.data import CocoDataset, make_shapes
from norton_det.errors import DataError
from norton_det.models.tensor_files import SHA256_KEY, read_file, sha256_of

TWO = Setting("det", 2, epochs=1)


def known_limit(why: str) -> pytest.MarkDecorator:
    """Expect a failure, and fail if there is none any more: the page is to be changed then."""
    return pytest.mark.xfail(reason=why, strict=True, raises=(AssertionError, pytest.fail.Exception))


@known_limit("a checksum finds damage, not intent")
def test_weights_that_were_changed_with_their_checksum_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    spec = nd.Spec("resnet56_cifar", 2)
    nd.save(nd.build(spec), spec, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).mul_(2)
    texts = {name: text for name, text in header.items() if name != SHA256_KEY}
    save_file(tensors, path, {**texts, SHA256_KEY: sha256_of(tensors, texts)})
    with pytest.raises(DataError):
        nd.load(path)


@known_limit("safetensors files that others wrote have no checksum")
def test_a_flipped_bit_in_the_weights_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"weight": torch.ones(100)}, path)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_file(path)


@known_limit("the images are not hashed, only the annotations are")
def test_an_image_that_was_replaced_is_noticed_when_a_training_goes_on(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=2, val=1, size=32)
    data = CocoDataset(tmp_path, "train", train=True)
    before = coco_facts(data)
    Image.new("RGB", (32, 32)).save(next(data.folder.iterdir()))
    assert coco_facts(data) != before


@pytest.mark.slow
@known_limit("the processes meet when all are there: torchrun alone knows of one that will not come")
def test_a_process_that_ends_before_all_have_met_ends_the_others(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path)
    words = trainings.words(TWO, tmp_path / "out")
    running = trainings.start(TWO, words, tmp_path / "log", lambda rank: os._exit(7) if rank else None)
    assert running.wait() is not None, "a process is still there"
