"""Widths and ranks in multiples."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st

import norton_det as nd
from norton_det.config import Config, read_config, write_config
from norton_det.errors import UsageError
from norton_det.search.uniform import search
from norton_det.structure.network import Network
from norton_det.structure.settings import (
    dense_network,
    kept_widths,
    rank_for,
    rounded,
    spec_from_configuration,
    widths_at,
)

NETWORKS = [dense_network(arch) for arch in ("densenet40_cifar", "resnet56_cifar")]
NETWORKS += [dense_network("fasterrcnn_cpresnet50_fpn", scope="detector")]


def named(network: Network, widths: Mapping[str, Any], rates: list[float]) -> Iterator[tuple[str, Any, float]]:
    """Yield the groups with their widths and rates, but for those that are as wide as what they read."""
    for entry, rate in zip(network.architecture.rate_order, rates, strict=False):
        for group in entry.groups:
            if group not in network.architecture.keeps_width:
                yield group, widths[group], rate


@given(st.integers(1, 64), st.integers(1, 600), st.floats(0, 0.999))
def test_rounded_is_a_multiple_below_or_the_first_one(multiple: int, full: int, rate: float) -> None:
    width = int(full * (1 - rate))
    found = int(rounded(np.array(width), multiple, full))
    if width == full or multiple == 1:
        assert found == width
        return
    assert min(full, multiple) <= found <= full
    assert found % multiple == 0 or found == full
    assert found <= width or found == min(full, multiple)
    assert width - found < multiple


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 0.95), min_size=39, max_size=39), st.sampled_from([8, 16, 32]))
def test_widths_of_a_network_are_multiples(rates: list[float], multiple: int) -> None:
    for plain in NETWORKS:
        network = replace(plain, architecture=plain.architecture.rounding_to(multiple))
        full = network.plan.widths
        for group, width in kept_widths(network, rates).items():
            assert width % multiple == 0 or width in (full[group], min(full[group], multiple)) or "transition" in group
        exact = widths_at(plain, np.array(rates))
        assert all(int(width) == int(full[group] * (1 - rate)) for group, width, rate in named(plain, exact, rates))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.integers(1, 400))
def test_ranks_are_multiples_where_they_are_channels(inputs: int, outputs: int, multiple: int, rank: int) -> None:
    conv = torch.nn.Conv2d(inputs, outputs, 3, device="meta")
    assert rank_for(conv, "cp", min(rank, 9 * inputs), multiple) == min(rank, 9 * inputs)
    found = rank_for(conv, "tucker2", rank, multiple)
    assert isinstance(found, tuple)
    limits = {"svd": [min(9 * inputs, outputs)], "tucker2": [inputs, outputs]}
    for method, limit in limits.items():
        found = rank_for(conv, method, rank, multiple)
        numbers = found if isinstance(found, tuple) else (found,)
        for number, most in zip(numbers, limit, strict=True):
            assert number % multiple == 0 or number == most
            assert min(multiple, most) <= number <= max(min(rank, most), min(multiple, most))


def test_compression_rounds(tmp_path: Path) -> None:
    methods = {"conv1": "tucker2", "layer1.*": "cp", "layer2.0.conv2": "tucker2"}
    ranks = {"conv1": 5, "layer1.*": 3, "layer2.0.conv2": (13, 31)}
    options = {"rank": ranks, "rates": "[0.]+[0.3]*29", "decomposition": methods, "round_to": 8}
    net, spec = nd.compress(None, arch="resnet56_cifar", **options)
    assert spec.ranks["conv1"] == (3, 8), "an image has 3 channels"
    assert spec.ranks["layer1.0.conv1"] == 3
    assert spec.ranks["layer2.0.conv2"] == (8, 24)
    assert {spec.widths[name] for name in ("layer1", "layer1.0.conv1")} == {8}
    assert (spec.widths["layer2"], spec.widths["layer3.0.conv1"]) == (16, 40)
    assert spec.provenance["prune"]["round_to"] == spec.provenance["decompose"]["round_to"] == 8
    config = Config("resnet56_cifar", "cifar10", **options)
    assert config.spec() == spec_from_configuration("resnet56_cifar", **options)
    assert (config.spec().widths, config.spec().decompositions) == (spec.widths, spec.decompositions)
    write_config(config, tmp_path / "a.yaml")
    assert read_config(tmp_path / "a.yaml") == config
    assert (
        tool("compress").main(["--config", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "a.safetensors")]) == 0
    )
    _, read = nd.load(tmp_path / "a.safetensors")
    assert (read.widths, read.decompositions) == (spec.widths, spec.decompositions)
    words = ["--arch", "resnet56_cifar", "--rates", "[0.3]*30", "--round-to", "16", "--output"]
    assert tool("compress").main([*words, str(tmp_path / "b.safetensors")]) == 0
    assert set(nd.load(tmp_path / "b.safetensors")[1].widths.values()) == {16, 32}
    again, _ = nd.prune(net, spec, "[0.3]*30", round_to=8)
    assert again.conv1.out_channels == 8
    with pytest.raises(UsageError, match="round_to is 0; expected at least 1"):
        nd.prune(net, spec, "[0.3]*30", round_to=0)


def test_search_looks_at_multiples() -> None:
    found = search("resnet56_cifar", target_params=0.3e6, rank=4, round_to=8, tolerance=0.1, limit=3)
    for candidate in found:
        spec = spec_from_configuration("resnet56_cifar", candidate.rank, candidate.rates, round_to=8)
        assert all(width % 8 == 0 for width in spec.widths.values())
        assert nd.count_complexity(spec).params == candidate.params
