"""The table of ``compress``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Refused, tool

import norton_det as nd

VGG = ["--arch", "vgg16_bn_cifar"]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once") / "once.safetensors"
    assert tool("compress").main([*VGG, "--rank", "1", "--output", str(path), "--quiet"]) == 0
    return path


def test_a_config_of_what_is_compressed_already_is_refused(once: Path, tmp_path: Path, refused: Refused) -> None:
    words = ["--config", "vgg16_bn_14m", "--weights", str(once), "--output", str(tmp_path / "twice.safetensors")]
    message = ("once.safetensors: is compressed already (13 layers decomposed", "expected dense weights", "--rates")
    refused(lambda: tool("compress").main(words), 2, *message, unwritten=tmp_path)


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_costs_are_those_of_the_dense_network_the_input_and_the_result(
    again: bool, once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    output = tmp_path / "x.safetensors"
    words = [*VGG, "--rates", "[0.5]*13", "--criterion", "norm", "--output", str(output)]
    words += ["--weights", str(once)] if again else []
    assert tool("compress").main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (dense_spec, spec), given = (nd.Spec("vgg16_bn_cifar", 10), nd.load(output)[1]), nd.load(once)[1]
    costs = {"dense": dense_spec, "input": given if again else dense_spec, "compressed": spec}
    for name, one in costs.items():
        counted = nd.count_complexity(one)
        assert report[name] == {key: getattr(counted, key) for key in report[name]}
    assert {"macs", "macs_published", "params", "activation_memory"} == report["dense"].keys()
    for part, prefix in (("input", "input_"), ("compressed", "")):
        assert sum(layer[f"{prefix}macs"] for layer in report["layers"]) == report[part]["macs"]
    assert report["bytes"] == output.stat().st_size
    monkeypatch.setattr(nd, "compress", lambda *args, **options: nd.load(output))  # the same again
    assert tool("compress").main(words) == 0
    text = capsys.readouterr().out
    below = 1 - report["compressed"]["macs"] / report["input"]["macs"]
    (row,) = (line for line in text.splitlines() if line.startswith("MACs (conv"))
    assert row.endswith(f"{100 * below:.1f} %")
    assert ("reduction of input" in text) == again
    assert ("NMSE: mean over the filters" in text) == again, "what no layer has is not explained"


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.safetensors"
    assert tool("compress").main([*VGG, "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert output.is_file()


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
