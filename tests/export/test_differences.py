"""What is called equal: detections in any order, with the same labels, near in place and score."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from norton_det.export.differences import TOLERANCES, Differences

Found = dict[str, Tensor]


def detections(count: int, seed: int = 0) -> Found:
    """Return objects that do not overlap, with masks and keypoints, scores from 0.4 to 0.9."""
    generator = torch.Generator().manual_seed(seed)
    corners = 20.0 * torch.arange(count)[:, None].expand(count, 2)
    masks = torch.zeros(count, 1, 20 * max(count, 1), 20 * max(count, 1))
    for i in range(count):
        masks[i, :, 20 * i : 20 * i + 10, 20 * i : 20 * i + 10] = 0.9
    return {
        "boxes": torch.cat([corners, corners + 10 + 5 * torch.rand(count, 2, generator=generator)], 1),
        "labels": torch.arange(count) % 2 + 1,
        "scores": 0.4 + 0.5 * torch.rand(count, generator=generator),
        "masks": masks,
        "keypoints": torch.cat([corners[:, None].repeat(1, 3, 1), torch.ones(count, 3, 1)], 2),
        "keypoints_scores": torch.rand(count, 3, generator=generator) + 5,
    }


def changed(found: Found, name: str, by: float, at: Any = 0) -> Found:
    tensor = found[name].clone()
    tensor[at] += by
    return {**found, name: tensor}


def compared(got: Found, wanted: Found) -> Differences:
    differences = Differences()
    differences.add([got], [wanted])
    return differences


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.integers(0, 99))
def test_the_order_of_detections_is_free(count: int, seed: int) -> None:
    found = detections(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    differences = compared({name: values[order] for name, values in found.items()}, found)
    assert differences.problem() is None
    assert differences.detections == count
    assert set(differences.figures().values()) <= {0.0}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.floats(0, 2))
def test_a_box_that_is_moved_is_measured(count: int, by: float) -> None:
    found = detections(count)
    for got, wanted in ((changed(found, "boxes", by), found), (found, changed(found, "boxes", by))):
        differences = compared(got, wanted)
        if differences.unmatched:
            assert by > 2 * TOLERANCES["boxes"] - 1e-3
        else:
            assert math.isclose(differences.figures()["boxes"], by, abs_tol=1e-4)
            assert (differences.problem() is None) == (differences.figures()["boxes"] <= TOLERANCES["boxes"])


@pytest.mark.parametrize("which", ["got", "wanted"])
def test_a_detection_that_only_one_has_is_found(which: str) -> None:
    more = detections(3)
    fewer = {name: values[:2] for name, values in more.items()}
    problem = (compared(more, fewer) if which == "got" else compared(fewer, more)).problem()
    assert problem is not None
    assert ("only the file" if which == "got" else "only the network") in problem


def test_another_label_is_found() -> None:
    found = detections(3)
    assert "label 1" in str(compared(changed(found, "labels", 1), found).problem())


def test_what_is_below_the_threshold_is_free() -> None:
    found = detections(3)
    low = changed(detections(4, 5), "scores", -0.9, slice(None))
    both = {name: torch.cat([found[name], low[name][3:]]) for name in found if name != "masks"}
    expected = {name: values for name, values in found.items() if name != "masks"}
    assert compared(both, expected).problem() is None


def test_a_score_at_the_threshold_may_be_on_either_side() -> None:
    found = detections(1)
    one = {**found, "scores": torch.tensor([0.30001])}
    other = {**found, "scores": torch.tensor([0.29999])}
    for pair in ((one, other), (other, one)):
        assert compared(*pair).problem() is None
        assert compared(*pair).detections == 1


@pytest.mark.parametrize(("name", "by"), [("scores", 0.01), ("masks", -0.9), ("keypoints", 2.0)])
def test_each_output_is_compared(name: str, by: float) -> None:
    found = detections(2)
    got = changed(found, name, by)
    if name == "keypoints":
        got = changed(got, "keypoints_scores", 1.0)
    assert "differ by" in str(compared(got, found).problem())


def test_a_mask_that_is_moved_by_a_pixel_is_at_the_edge() -> None:
    found = detections(40)
    moved = found["masks"].clone()
    moved[0] = moved[0].roll(1, 1)
    figures = compared({**found, "masks": moved}, found).figures()
    assert figures["mask pixels"] == pytest.approx(20 / 4000)
    assert figures["mask pixels off the edge"] == 0
    moved[0] = found["masks"][0].roll(3, 1)
    off = compared({**found, "masks": moved}, found).figures()["mask pixels off the edge"]
    assert off == pytest.approx(2 * 2 * 10 / 4000)
    assert "mask pixels off the edge" in str(compared({**found, "masks": moved}, found).problem())


def test_keypoints_at_an_equal_score_are_ties_as_long_as_they_are_few() -> None:
    found = detections(40)
    few = changed(found, "keypoints", 5.0, (0, 0))
    assert compared(few, found).problem() is None
    assert compared(few, found).figures()["keypoint ties"] == pytest.approx(1 / 120)
    assert "keypoint ties" in str(compared(changed(found, "keypoints", 5.0, slice(4)), found).problem())


def test_other_outputs_are_found() -> None:
    found = detections(2)
    without = {name: values for name, values in found.items() if name != "masks"}
    assert "are returned" in str(compared(without, found).problem())


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1e-2))
def test_tensors_are_compared_relative_to_the_largest_value(by: float) -> None:
    expected = torch.tensor([[1.0, -8.0]])
    for got, wanted in ((expected + 8 * by, expected), ({"a": expected + 8 * by}, {"a": expected})):
        differences = Differences()
        differences.add(got, wanted)
        assert differences.figures()["outputs"] == pytest.approx(by, abs=1e-6)
    differences = Differences()
    differences.add(expected, {"a": expected})
    assert differences.problem() is not None
