"""Files whose checksum fits and whose content no network can have: refused by name, before they take memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from conftest import Refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import norton_det as nd
from benchmarks.memory import peak_memory
from norton_det.errors import DataError, UsageError
from norton_det.json_text import MOST_LEVELS, json_object
from norton_det.models.state_dicts import check_tensors
from norton_det.models.tensor_files import SHA256_KEY, SPEC_KEY, read_file, read_header, sha256_of
from norton_det.structure.plain_values import MOST, check_value

GOLDEN = Path(__file__).parents[1] / "golden" / "version3"


def lie(
    folder: Path,
    name: str = "cp",
    spec: dict[str, Any] | None = None,
    change: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> Path:
    """Write a golden file with another spec and other tensors, and the checksum that fits them."""
    path = folder / f"{name}.safetensors"
    header, tensors = dict(read_header(GOLDEN / path.name)), load_file(GOLDEN / path.name)
    header[SPEC_KEY] = json.dumps({**json.loads(header[SPEC_KEY]), **(spec or {})})
    change(tensors)
    header[SHA256_KEY] = sha256_of(tensors, header)
    save_file(tensors, path, header)
    return path


def became(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bn1.weight", Tensor.int, "bn1.weight is torch.int32; expected floating-point numbers"),
        ("bn1.weight", lambda x: x.to(torch.complex64), "bn1.weight is torch.complex64; expected floating-point"),
        ("bn1.weight", lambda x: x.to(torch.float8_e4m3fn), "bn1.weight is torch.float8_e4m3fn; expected floating"),
        ("bn1.num_batches_tracked", Tensor.float, "bn1.num_batches_tracked is torch.float32; expected whole numbers"),
        ("bn1.running_var", lambda x: -x - 1, "bn1.running_var has 8 negative values; expected variances"),
        ("bn1.bias", lambda x: x / 0, "bn1.bias has"),
    ],
)
def test_wrong_tensors_are_named(
    name: str, change: Callable[[Tensor], Tensor], message: str, tmp_path: Path, refused: Refused
) -> None:
    path = lie(tmp_path, change=became(name, change))
    refused(lambda: nd.load(path), 3, f"{path}: ", message)


RANK = {"decompositions": {"conv1": {"method": "cp", "rank": 10**9}}}
ANCHORS = {f"rpn.anchor_generator.{name}": [[*range(1, 99)]] * 5 for name in ("sizes", "aspect_ratios")}
LARGE = [
    ("cp", {"num_classes": 10**9, "classes": []}, "spec says num_classes 1,000,000,000; the largest tensor of the"),
    ("cp", RANK, "spec says rank of conv1 1,000,000,000; the largest tensor of the file has"),
    ("cp", {"num_classes": 10**10, "classes": []}, "num_classes is 10000000000; expected"),
    ("cp", {"num_classes": 200, "classes": []}, "linear.weight has shape (3, 64); expected (200, 64)"),
    ("cp", {"attributes": {"conv1.kernel_size": [9, 9]}}, "conv1.kernel_size is (9, 9); the tensors of its layer are"),
    ("detector", {"attributes": {"roi_heads.box_roi_pool.output_size": [999] * 2}}, "expected numbers from 1 to 256"),
    ("detector", {"attributes": ANCHORS}, "expected as many for each level as now: [1, 1, 1, 1, 1]"),
    ("detector", {"attributes": {"rpn.anchor_generator.sizes": [[16, 24]] * 5}}, "expected as many for each level"),
    ("detector", {"options": {"anchor_sizes": [[*range(1, 9999)]] * 5}}, "expected 1 to 100 values"),
    ("detector", {"options": {"min_size": "large"}}, "min_size"),
    ("detector", {"options": {"box_score_thresh": [1]}}, "score_thresh"),
]


@pytest.mark.parametrize(("name", "spec", "message"), LARGE)
def test_few_bytes_that_ask_for_much_are_refused(
    name: str, spec: dict[str, Any], message: str, tmp_path: Path, refused: Refused
) -> None:
    path = lie(tmp_path, name, spec)
    memory = peak_memory(lambda: refused(lambda: nd.load(path), 3, f"{path}: ", message))
    assert (memory or 0) < 100


def test_a_builder_downloads_nothing(refused: Refused) -> None:
    spec = nd.Spec("resnet50", 1000, options={"weights": "IMAGENET1K_V2"})
    refused(lambda: nd.build(spec, "meta"), 2, "options have weights; expected none")


def test_files_of_torch_that_take_more_than_they_have(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "x.pth"
    torch.save({"x": torch.zeros(1).expand(10**9)}, path)
    refused(lambda: check_tensors(read_file(path), path), 3, "tensors of 4,000,000,000 bytes share 4; expected")
    for tensor in (torch.empty(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(DataError):
            nd.models.weights.load_state(torch.nn.Linear(2, 1, bias=False), {"weight": tensor}, path)
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "y.pth")
    with ZipFile(tmp_path / "y.pth") as archive, ZipFile(path, "w", ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    refused(lambda: read_file(path), 3, "is compressed; expected a file of torch.save")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(value=PLAIN, present=st.sampled_from([1, 0.5, (1, 1), "zeros", True, None, (0.5, 0.5, 0.5), ((32,), (64,))]))
def test_an_attribute_keeps_its_kind_and_is_small(value: Any, present: Any) -> None:
    check_value("x.any", present, present)
    try:
        check_value("x.any", value, present)
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017  both ends are right
        return
    if value is not None and present is not None:
        numbers = (int, float)
        assert type(value) is type(present) or (isinstance(value, numbers) and isinstance(present, numbers))
    for number in [value] if isinstance(value, (int, float)) else []:
        assert abs(number) <= MOST


def test_deep_and_double_json_is_refused() -> None:
    for depth in (MOST_LEVELS, 10**5):
        with pytest.raises(DataError, match=r"levels|not JSON"):
            json_object('{"a":' * depth + "1" + "}" * depth, "spec")
    assert json_object('{"a":' * (MOST_LEVELS - 1) + "1" + "}" * (MOST_LEVELS - 1), "spec")
