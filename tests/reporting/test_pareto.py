"""The figure of accuracy against reduction."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import norton_det as nd
from norton_det.errors import DataError, UsageError
from norton_det.reporting.measured import MeasuredRow
from norton_det.reporting.pareto import COSTS, pareto_figure
from norton_det.reporting.published import DENSE


def measured(label: str, macs: int, params: int, top1: float) -> MeasuredRow:
    return MeasuredRow("vgg16_bn_cifar", "jpeg", label, macs, params, "x", top1=top1)


OWN = [measured(DENSE, 400, 200, 90), measured("rank 1", 100, 20, 88), measured("rank 2", 200, 80, 89.5)]


def curves(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


@pytest.mark.parametrize(
    ("network", "metric"),
    [("vgg16_bn", "top1"), ("resnet56", "top1"), ("resnet50", "top1"), ("resnet50", "top5"), ("densenet40", "top1")],
)
def test_names_cover_neither_each_other_nor_what_is_drawn(network: str, metric: str) -> None:
    figure = pareto_figure(network, OWN, metric=metric)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert boxes
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        for line in axes.lines:
            steps = 1 if line.get_linestyle() == "None" else 80
            spots = line.get_transform().transform(line.get_path().interpolated(steps).vertices)
            assert not any(box.contains(*spot) for box in boxes for spot in spots)
        left, bottom, right, top = axes.bbox.extents
        assert all(left <= b.x0 and bottom <= b.y0 and b.x1 <= right and b.y1 <= top for b in boxes)


@pytest.mark.parametrize("cost", COSTS)
def test_every_row_that_states_both_is_drawn(cost: str) -> None:
    rows = nd.published("resnet50")
    axes = pareto_figure("resnet50").axes[list(COSTS).index(cost)]
    (dense,) = (row for row in rows if row.method == DENSE)
    complete = [row for row in rows if getattr(row, cost) is not None and row is not dense]
    expected = sorted((100 * (1 - getattr(r, cost) / getattr(dense, cost)), r.top1) for r in complete)
    drawn = curves(axes)
    points = [*drawn["compared methods, published"], *drawn["NORTON, published"]]
    np.testing.assert_allclose(sorted(map(tuple, points)), expected)
    assert {text.get_text() for text in axes.texts} - {""} == {r.method for r in complete} - {"NORTON"}
    left_out = len(rows) - 1 - len(complete)
    assert f"not drawn: {left_out})" in axes.get_xlabel()


def test_measured_rows_refer_to_their_own_baseline() -> None:
    elsewhere = MeasuredRow("resnet50", "jpeg", "other network", 1, 1, "x", top1=1)
    for relative, below in ((False, 0), (True, 90)):
        macs, params = (curves(a) for a in pareto_figure("vgg16_bn", [*OWN, elsewhere], relative=relative).axes)
        np.testing.assert_allclose(macs["measured on jpeg"], [(50, 89.5 - below), (75, 88 - below)])
        np.testing.assert_allclose(params["measured on jpeg"], [(60, 89.5 - below), (90, 88 - below)])
    assert macs["dense baseline"][:, 1].tolist() == [0, 0]
    absolute = curves(pareto_figure("vgg16_bn", OWN).axes[0])
    assert absolute["dense, published"][0, 1] == 93.96
    assert absolute["dense, measured on jpeg"][0, 1] == 90


def test_without_a_row_to_draw_there_is_the_baseline() -> None:
    (axes, _) = pareto_figure("vgg16_bn", OWN[:1]).axes
    assert len(curves(axes)["measured on jpeg"]) == 0
    assert curves(axes)["dense, measured on jpeg"][0, 1] == 90
    with pytest.raises(DataError, match="0 rows of vgg16_bn_cifar on jpeg have the label 'dense'; expected one"):
        pareto_figure("vgg16_bn", OWN[1:])


def test_detectors() -> None:
    drawn = curves(pareto_figure("maskrcnn_cpresnet50_fpn", metric="AP75").axes[1])
    np.testing.assert_allclose(drawn["NORTON, published"], [(24.966, 0.37), (44.557, 0.33)], atol=1e-3)
    assert drawn["dense, published"][0, 1] == 0.36
    with pytest.raises(
        UsageError, match="unknown metric of maskrcnn_cpresnet50_fpn 'top1'; expected one of: AP, AP50, AP75, AR1"
    ):
        pareto_figure("maskrcnn_cpresnet50_fpn")
