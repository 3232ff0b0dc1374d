"""The cost model against the count, of layers beside the channel plan too."""

import pytest

import norton_det as nd
from norton_det.cost.cost_model import CostModel
from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import DecomposedLayer, Spec

BESIDE = {
    "fasterrcnn_cpresnet50_fpn": ("backbone.fpn.layer_blocks.1.0", "rpn.head.conv.0.0"),
    "maskrcnn_cpresnet50_fpn": ("backbone.fpn.inner_blocks.2.0", "roi_heads.mask_head.0.0"),
    "maskrcnn_cpresnet50_fpn_v2": ("rpn.head.conv.1.0", "roi_heads.box_head.2.0"),
    "keypointrcnn_cpresnet50_fpn": ("backbone.fpn.layer_blocks.0.0", "roi_heads.keypoint_head.0"),
}


@pytest.mark.parametrize(
    "arch", [arch if arch[-1] != "2" else pytest.param(arch, marks=pytest.mark.slow) for arch in BESIDE]
)
def test_layers_beside_the_plan_cost_what_is_counted(arch: str) -> None:
    first, second = BESIDE[arch]
    decompositions = {
        first: DecomposedLayer("cp", 1),
        second: DecomposedLayer("tucker2", (16, 24)),
        "backbone.body.layer3.0.conv2": DecomposedLayer("cp", 2),
    }
    spec = Spec(arch, 3, decompositions, widths={"layer1": 200, "layer2": 333})
    counted, dense = nd.count_complexity(spec), nd.count_complexity(Spec(arch, 3))
    model = CostModel(ARCHITECTURES[arch])
    # The model is of the default number of classes: compare what is saved.
    costs, whole = model.at(decompositions, spec.widths), model.at({}, {})
    for name in ("macs", "macs_published", "params"):
        saved = getattr(dense, name) - getattr(counted, name)
        assert getattr(whole, name) - getattr(costs, name) == saved > 0


def test_a_layer_that_there_is_not_is_refused() -> None:
    model = CostModel(ARCHITECTURES["resnet56_cifar"])
    with pytest.raises(UsageError, match=r"the cost model has no layer 'conv7'; expected one of: conv1, "):
        model.at({"conv7": DecomposedLayer("cp", 1)}, {})
