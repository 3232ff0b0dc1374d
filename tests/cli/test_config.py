"""Configs: each file under configs/ against what was published, and files that are wrong."""

import argparse
import math
from pathlib import Path

import pytest
from conftest import Refused

import norton_det as nd
from norton_det.cli.common import parse_with_config
from norton_det.config import Config, read_config
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import Spec

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
GIGA = {"M": 1e6, "G": 1e9}
# Published without the biases of the decomposed layers; those of the two networks that are not pruned count them.
WITHOUT_BIASES = ("vgg16_bn_126m", "vgg16_bn_102m", "vgg16_bn_14m", "vgg16_bn_5m")


def number(text: str) -> float:
    return float(text[:-1]) * GIGA[text[-1]]


def test_every_published_row_has_a_config() -> None:
    counts = {arch: sum(read_config(file).arch == arch for file in FILES) for arch in ARCHITECTURES}
    assert counts == {
        "vgg16_bn_cifar": 6,
        "resnet56_cifar": 5,
        "resnet110_cifar": 3,
        "densenet40_cifar": 3,
        "resnet50": 5,
        "fasterrcnn_cpresnet50_fpn": 2,
        "maskrcnn_cpresnet50_fpn": 2,
        "keypointrcnn_cpresnet50_fpn": 2,
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_costs_what_was_published(file: Path) -> None:
    config = read_config(file)
    cost = count_complexity(config.spec())
    detector = config.arch.endswith("fpn")
    macs, params = (number(config.published[name]) for name in ("macs", "params"))
    tolerance = 0.005
    if config.reconstructed or detector or config.arch.startswith("vgg"):
        tolerance = 0.01
    assert abs(macs / cost.macs_published - 1) < tolerance
    counted = cost.params - (cost.cp_biases if file.stem in WITHOUT_BIASES else 0)
    if not config.reconstructed:
        assert math.floor(counted / 1e4) == round(params / 1e4)
    elif detector:
        assert abs(counted - params) < 0.05e6
    else:
        assert abs(params / counted - 1) < 0.01


@pytest.mark.parametrize(
    ("arch", "params"),
    [
        ("vgg16_bn_cifar", 14_991_946),
        ("resnet56_cifar", 853_018),
        ("resnet110_cifar", 1_727_962),
        ("densenet40_cifar", 1_059_298),
        ("resnet50", 25_557_032),
    ],
)
def test_dense_parameters(arch: str, params: int) -> None:
    net = nd.build(Spec(arch, ARCHITECTURES[arch].num_classes), "meta")
    assert sum(p.numel() for p in net.parameters()) == params


@pytest.mark.parametrize("stem", ["vgg16_bn_102m", "resnet56_73m", "densenet40_123m", "resnet50_0.92g"])
def test_the_cost_model_agrees_with_the_count(stem: str) -> None:
    (file,) = (file for file in FILES if file.stem == stem)
    spec = read_config(file).spec()
    counted, modelled = count_complexity(spec), CostModel(ARCHITECTURES[spec.arch]).at(spec.decompositions, spec.widths)
    assert modelled == (counted.macs, counted.macs_published, counted.params)


def test_the_cost_model_of_a_detector() -> None:
    spec = read_config(CONFIGS / "coco" / "keypointrcnn_96g.yaml").spec()
    counted, modelled = count_complexity(spec), CostModel(ARCHITECTURES[spec.arch]).at(spec.decompositions, spec.widths)
    assert modelled == (counted.macs, counted.macs_published, counted.params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arch: [", "no YAML"),
        ("- 1", "holds a list; expected a config"),
        ("dataset: cifar10", "lacks the field arch"),
        (
            "arch: resnet56_cifar\ndataset: cifar10\nranks: 3",
            "unknown field 'ranks'; expected one of: arch,",
        ),
        ("arch: resnet56_cifar\ndataset: cifar10\nrank: two", "rank 'two': expected a term like [2]"),
        ("arch: resnet57\ndataset: cifar10", "unknown architecture 'resnet57'"),
        ("arch: resnet56_cifar\ndataset: cifar10\nrates: '[0.1]*3'", "rates has 3 values; resnet56_cifar takes 30"),
        ("arch: resnet56_cifar\ndataset: cifar10\nrecipe: none.yaml", "none.yaml: no such file; expected the recipe"),
    ],
)
def test_wrong_configs(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    refused(lambda: read_config(path), 3, message, str(tmp_path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tool")
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--rank", type=int)
    return parser


def test_a_config_gives_defaults_that_flags_override(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("arch: resnet56_cifar\ndataset: cifar10\nrank: 3\nrecipe: {lr: 1e-2}\n")
    args, config = parse_with_config(_parser(), ["--config", str(path)], recipe=True)
    assert config is not None
    assert (args.lr, args.rank) == (0.01, 3)
    assert parse_with_config(_parser(), ["--config", str(path), "--lr", "2"], recipe=True)[0].lr == 2
    assert parse_with_config(_parser(), ["--config", str(path)])[0].lr == 1
    assert parse_with_config(_parser(), ["--rank", "2"], recipe=True) == (
        argparse.Namespace(lr=1.0, rank=2, config=None),
        None,
    )
    path.write_text("arch: resnet56_cifar\ndataset: cifar10\nrecipe: {learning_rate: 1}\n")
    with pytest.raises(DataError, match="recipe has 'learning_rate', which is no flag of tool"):
        parse_with_config(_parser(), ["--config", str(path)], recipe=True)


def test_a_config_is_checked_when_it_is_built_in_code() -> None:
    with pytest.raises(UsageError, match="rank is 0"):
        Config("resnet56_cifar", "cifar10", rank=0).spec()
