"""Compression configurations: from a rank and rates to a spec."""

import numpy as np
import pytest

from norton_det.errors import UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import Spec
from norton_det.structure.build import build_network
from norton_det.structure.network import Network
from norton_det.structure.settings import dense_network, kept_widths, spec_from_configuration, widths_at

RESNET56 = dense_network("resnet56_cifar")


def meta_network(spec: Spec) -> Network:
    return build_network(spec, ARCHITECTURES[spec.arch], "meta")


def test_kept_widths_are_the_published_ones() -> None:
    kept = kept_widths(RESNET56, "[0.]+[0.12]*2+[0.75]*27")
    assert (kept["stem"], kept["layer1"], kept["layer2"], kept["layer3.0.conv1"]) == (16, 14, 28, 16)
    with pytest.raises(UsageError, match=r"group 'stem': rate 0\.95 leaves none of its 16 filters"):
        kept_widths(RESNET56, "[0.95]*30")


def test_a_transition_is_as_wide_as_what_it_reads() -> None:
    dense = dense_network("densenet40_cifar")
    kept = kept_widths(dense, "[0.5]+[0.25]*12+[0.]+[0.25]*12+[0.5]+[0.]*12")
    assert "stem" not in kept  # its rate is not applied
    assert kept["block1.0"] == 9
    assert kept["transition1"] == 24 + 12 * 9
    assert kept["transition2"] == (24 + 2 * 12 * 9) // 2
    # And once more, from the narrowed network.
    narrowed = spec_from_configuration("densenet40_cifar", None, "[0.5]+[0.25]*12+[0.]+[0.25]*12+[0.5]+[0.]*12")
    assert kept_widths(meta_network(narrowed), "[0.]*39")["transition1"] == 24 + 12 * 9


def test_many_settings_at_once_are_each_alone() -> None:
    rates = np.random.default_rng(0).uniform(0, 0.9, (39, 4))
    dense = dense_network("densenet40_cifar")
    together = widths_at(dense, rates)
    for i in range(4):
        alone = kept_widths(dense, list(rates[:, i]))
        assert alone == {group: together[group][i] for group in alone}


def test_a_setting_without_anything_is_the_dense_network() -> None:
    assert spec_from_configuration("resnet50") == Spec("resnet50", 1000)
    assert spec_from_configuration("resnet50", 1, "[0.]*20").widths == {}
    assert len(spec_from_configuration("resnet50", 3).ranks) == 16


def test_a_rank_for_each_layer() -> None:
    spec = spec_from_configuration("resnet56_cifar", "[0]+[2]*18+[3]*35+[1, 7]")
    assert len(spec.ranks) == 54
    assert [spec.ranks[name] for name in ("layer1.0.conv1", "layer2.0.conv1", "layer3.8.conv2")] == [2, 3, 1]
    assert "conv1" not in spec.ranks
    with pytest.raises(UsageError, match=r"rank has 2 values; resnet56_cifar takes 55: conv1, layer1\.0\.conv1"):
        spec_from_configuration("resnet56_cifar", "[2]*2")
    with pytest.raises(UsageError, match=r"layer 'conv1': rank is \(2, 3\); expected one number"):
        spec_from_configuration("resnet56_cifar", "[2x3]*55")


PATTERNS = {"layer1.*": 2, "layer1.0.conv1": 3, "*.conv1": 4, "linear": 5}


def test_names_with_an_asterisk_are_of_the_layers_that_they_match() -> None:
    methods = {"layer1.*": "cp", "layer1.0.conv1": "tucker2", "*.conv1": "tucker2", "linear": "svd"}
    spec = spec_from_configuration("resnet56_cifar", PATTERNS, decomposition=methods)
    layers = spec.decompositions
    assert layers["layer1.0.conv1"] == ("tucker2", (3, 3)), "a name without an asterisk comes first"
    assert layers["layer1.1.conv1"] == ("cp", 2), "then the first that matches"
    assert layers["layer2.0.conv1"] == ("tucker2", (4, 4))
    assert layers["linear"] == ("svd", 5)
    assert "layer2.0.conv2" not in layers
    assert "conv1" not in layers
    order = [layer.name for layer in RESNET56.plan.layers if layer.name in layers]
    assert list(layers) == order
    same = spec_from_configuration("resnet56_cifar", {"*": 2})
    assert same == spec_from_configuration("resnet56_cifar", 2), "the layers that one rank for all is meant for"


def test_a_name_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'layer9\.\*' matches no layer for 'cp'; expected some of: conv1, layer1\.0"):
        spec_from_configuration("resnet56_cifar", {"layer9.*": 2})
    with pytest.raises(UsageError, match=r"'backbone\.fpn\.\*' matches no layer for 'cp'; expected some of: backbone"):
        spec_from_configuration("fasterrcnn_cpresnet50_fpn", {"backbone.fpn.*": 2})
