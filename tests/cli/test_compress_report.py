"""The table of ``compress``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tool

import norton_det as nd


@pytest.mark.parametrize("key", ["degeneracy", "cancellation"])
def test_the_degeneracy_of_a_fit_is_read_under_its_old_name(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, spec = nd.decompose(nd.build(nd.Spec("resnet56_cifar", 10)), "resnet56_cifar", {"conv1": 2})
    step = json.loads(json.dumps(spec.provenance["decompose"]))
    value = step["layers"]["conv1"].pop("degeneracy")
    step["layers"]["conv1"][key] = value
    spec = replace(spec, provenance={**spec.provenance, "decompose": step})
    nd.save(net, spec, tmp_path / "net.safetensors")
    words = ["--arch", "resnet56_cifar", "--weights", str(tmp_path / "net.safetensors"), "--rates", "[0.5]*30"]
    assert tool("compress").main([*words, "--output", str(tmp_path / "pruned.safetensors")]) == 0
    rows = [line.replace("|", " ").split() for line in capsys.readouterr().out.splitlines()]
    columns = {row[0]: row[2] for row in rows if row and row[0] in ("layer", "conv1")}
    assert columns == {"layer": "degeneracy", "conv1": f"{value:.2f}"}
