"""A report evaluates a run on what the run was evaluated on."""

from pathlib import Path

import pytest

from norton_det.data import CocoDataset
from norton_det.reporting.report import truth_of
from norton_det.reporting.run import Run


@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
def test_the_truth_is_the_part_that_was_held_out(kind: str, shapes: Path) -> None:
    path = shapes / "annotations" / f"{kind}_train2017.json"
    args = {"val_fraction": 0.34, "split_seed": 3, "keypoint_sigmas": [0.2] if kind != "instances" else None}
    held_out = CocoDataset(None, "val", images=shapes / "train2017", annotations=path, val_fraction=0.34, split_seed=3)
    truth = truth_of(Run(shapes, {"args": args}, [], []), path)
    assert sorted(truth.imgs) == held_out.ids
    assert [c.get("keypoint_sigmas") for c in truth.dataset["categories"]] == [
        [0.2] * 5 if kind != "instances" else None
    ] * 3
    assert len(truth_of(Run(shapes, {}, [], []), path).imgs) == 6, "a run of an earlier version"
