"""Configs: each file under configs/ against what was published, and files that are wrong."""

import math
from collections import Counter
from pathlib import Path

import pytest
import yaml
from conftest import Refused

import norton_det as nd
from norton_det.cli.common import Parser
from norton_det.cli.config_defaults import add_config, parse_arguments
from norton_det.cli.main import parser_of
from norton_det.cli.options import json_object, rank_or_ranks
from norton_det.config import Config, config_files, read_config
from norton_det.cost.complexity import count_complexity
from norton_det.cost.cost_model import CostModel
from norton_det.errors import DataError, UsageError
from norton_det.models import ARCHITECTURES
from norton_det.spec import Spec

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
OURS = [file for file in FILES if read_config(file).ours]
PUBLISHED = [file for file in FILES if file not in OURS]
GIGA = {"M": 1e6, "G": 1e9}
# Published without the biases of the decomposed layers; those of the two networks that are not pruned count them.
WITHOUT_BIASES = ("vgg16_bn_126m", "vgg16_bn_102m", "vgg16_bn_14m", "vgg16_bn_5m")


def number(text: str) -> float:
    return float(text[:-1]) * GIGA[text[-1]]


def test_every_published_row_has_a_config() -> None:
    assert Counter(read_config(file).arch for file in PUBLISHED) == {
        "vgg16_bn_cifar": 6,
        "resnet56_cifar": 5,
        "resnet110_cifar": 3,
        "densenet40_cifar": 3,
        "resnet50": 5,
        "fasterrcnn_cpresnet50_fpn": 2,
        "maskrcnn_cpresnet50_fpn": 2,
        "keypointrcnn_cpresnet50_fpn": 2,
    }


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
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


def test_rows_of_ours_are_whole_detectors() -> None:
    assert Counter(read_config(file).arch for file in OURS) == {
        f"{kind}rcnn_cpresnet50_fpn": 1 for kind in ("faster", "mask", "keypoint")
    }
    for file in OURS:
        config = read_config(file)
        assert (config.scope, config.published) == ("detector", {})


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.stem)
def test_a_row_of_ours_costs_what_it_says(file: Path) -> None:
    config = read_config(file)
    cost = count_complexity(config.spec())
    for name, counted in (("macs", cost.macs_published), ("params", cost.params)):
        text = config.ours[name]
        assert abs(number(text) - counted) <= 0.5 * GIGA[text[-1]] * 10 ** -len(text[:-1].partition(".")[2])
    if config.arch.startswith("faster"):  # the limits that the whole detector was to meet
        assert cost.macs <= 50e9
        assert cost.params <= 10e6


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
        ("arch: resnet56_cifar\ndataset: cifar10\nrank: 1.5", "rank is 1.5; expected a whole number, or one for each"),
        ("arch: resnet56_cifar\ndataset: cifar10\nrank: true", "rank is True; expected a whole number"),
        ("arch: resnet56_cifar\ndataset: cifar10\nrates: 0.5", "rates is 0.5; expected pruning rates as [0.]+[0.1]*2"),
        (
            "arch: resnet56_cifar\ndataset: cifar\n",
            "dataset is 'cifar'; expected one of: cifar10, imagenet, coco, coco_kp",
        ),
        ("arch: resnet56_cifar\ndataset: cifar10\ncriterion: l1", "criterion is 'l1'; expected one of: csa, "),
        ("arch: resnet56_cifar\ndataset: cifar10\ndecomposition: lu", "decomposition is 'lu'; expected one of: cp, "),
    ],
)
def test_wrong_configs(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    refused(lambda: read_config(path), 3, message, str(tmp_path))


def parser(*, recipe: bool = True) -> Parser:
    made = Parser(prog="norton-det train")
    add_config(made, recipe=recipe)
    add = made.add_argument
    add("--arch", choices=["resnet56_cifar", "resnet50"])
    add("--data-path", required=True)
    add("--lr", type=float, default=1.0)
    add("--rank", type=rank_or_ranks)
    add("--epochs", type=int, default=1)
    add("--lr-steps", type=int, nargs="+", default=[1])
    add("--implementation", "--form", dest="implementation", choices=["factored", "dense"], default="factored")
    add("--amp", action="store_true")
    add("--model-kwargs", type=json_object, default="{}")
    return made


def config(tmp_path: Path, recipe: str, more: str = "") -> str:
    path = tmp_path / "config.yaml"
    path.write_text(f"arch: resnet56_cifar\ndataset: cifar10\nrank: 3\nrecipe: {recipe}\n{more}")
    return str(path)


def test_a_config_gives_defaults_that_flags_override(tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, "{lr: 1e-2, data_path: here}")]
    args = parse_arguments(parser(), words)
    assert (args.lr, args.rank, args.arch, args.data_path) == (0.01, 3, "resnet56_cifar", "here")
    args = parse_arguments(parser(), [*words, "--lr", "2", "--data-path", "there"])
    assert (args.lr, args.data_path) == (2, "there")
    args = parse_arguments(parser(), ["--rank", "2", "--data-path", "here"])
    assert (args.lr, args.rank, args.config) == (1, 2, None)


def test_a_recipe_is_for_training_alone(tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, "{lr: 1e-2, data_path: here}")]
    assert parse_arguments(parser(recipe=False), [*words, "--data-path", "x"]).lr == 1
    with pytest.raises(UsageError, match="required: --data-path"):
        parse_arguments(parser(recipe=False), words)


def test_null_is_a_value_where_nothing_is_the_default(tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, "{rank: null, data_path: x}")]
    assert parse_arguments(parser(), words).rank is None


def test_two_spellings_of_a_flag_do_not_make_its_abbreviation_ambiguous() -> None:
    made = Parser()
    made.add_argument("--start-epoch", "--start_epoch", type=int)
    made.add_argument("--step", type=int)
    assert made.parse_args(["--star", "3"]).start_epoch == 3
    with pytest.raises(UsageError, match="ambiguous option: --st could match"):
        made.parse_args(["--st", "3"])


def test_a_recipe_has_every_kind_of_value(tmp_path: Path) -> None:
    recipe = "{epochs: 2, lr: 1, lr_steps: [3, '4'], amp: true, form: dense, data_path: x, model_kwargs: {a: [1]}}"
    args = parse_arguments(parser(), ["--config", config(tmp_path, recipe)])
    assert (args.epochs, args.lr, args.lr_steps, args.amp) == (2, 1.0, [3, 4], True)
    assert (args.implementation, args.model_kwargs) == ("dense", {"a": [1]})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("epochs", "1.5", "epochs is 1.5; expected a whole number"),
        ("epochs", "true", "epochs is True; expected a whole number"),
        ("epochs", "", "epochs is None; expected a whole number"),
        ("lr_steps", "16", "lr_steps is 16; expected a list, each value a whole number"),
        ("lr_steps", "[16, x]", r"lr_steps is \[16, 'x'\]; expected a list, each value a whole number"),
        ("lr_steps", "[]", r"lr_steps is \[\]; expected a list"),
        ("amp", "'no'", "amp is 'no'; expected true or false"),
        ("amp", "1", "amp is 1; expected true or false"),
        ("lr", "[1]", r"lr is \[1\]; expected a number"),
        ("lr", "fast", "lr is 'fast'; expected a number"),
        ("implementation", "slow", "implementation is 'slow'; expected one of: factored, dense"),
        ("data_path", "5", "data_path is 5; expected a text"),
        ("model_kwargs", "[1]", r"model_kwargs is \[1\]; expected a mapping"),
        ("rank", "two", "rank is 'two'; expected a rank like 2"),
    ],
)
def test_a_recipe_of_wrong_values(field: str, value: str, expected: str, tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, f"{{{field}: {value}}}"), "--data-path", "x"]
    with pytest.raises(DataError, match=rf"config\.yaml: recipe field {expected}"):
        parse_arguments(parser(), words)


RANGES = {
    "epochs": ([0, -1, 10**400, 2**31, math.nan], "expected (at least 1|a whole number)"),
    "lr": ([-1, math.nan, math.inf, 10**400, -1e-9], "expected a number"),
    "momentum": ([-0.1, 1.5], "expected a number from 0 to 1"),
    "weight_decay": ([-1e-4, "x", []], "expected a number"),
    "lr_steps": ([[-1], [1, 10**10], [1.5], [[1]]], "expected a list, each value"),
    "seed": ([10**20, 0.5], "expected a whole number"),
    "model_ema_decay": ([2], "expected a number from 0 to 1"),
}


def test_every_number_of_a_recipe_has_a_range(tmp_path: Path) -> None:
    for field, (values, expected) in RANGES.items():
        for value in values:
            path = tmp_path / "config.yaml"
            recipe = yaml.safe_dump({"recipe": {field: value}})
            path.write_text(f"arch: resnet56_cifar\ndataset: cifar10\n{recipe}")
            with pytest.raises(DataError, match=rf"config\.yaml: recipe field {field} is .*; {expected}"):
                parse_arguments(parser_of("train-cls"), ["--config", str(path), "--data-path", "x"])


def test_the_command_line_has_the_same_ranges() -> None:
    for words in (["--lr", "nan"], ["--lr", "-1"], ["--epochs", "0"], ["--momentum", "2"], ["--batch-size", "x"]):
        with pytest.raises(UsageError, match=rf"^{words[0]} is {words[1]}; expected "):
            parser_of("train-cls").parse_args(["--data-path", "x", *words])


def test_a_misspelled_name_is_told(tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, "{epoch: 1}"), "--data-path", "x"]
    with pytest.raises(DataError, match=r"'epoch', which is no flag of .* \(did you mean 'epochs'\?\)"):
        parse_arguments(parser(), words)
    (tmp_path / "config.yaml").write_text("arch: resnet56_cifr\ndataset: cifar10\n")
    with pytest.raises(DataError, match=r"did you mean 'resnet56_cifar'\?"):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("field", ["output_dir", "overwrite", "resume", "dist_url"])
def test_a_recipe_does_not_say_what_is_written_where(field: str, tmp_path: Path) -> None:
    words = ["--config", config(tmp_path, f"{{{field}: x}}"), "--data-path", "x"]
    with pytest.raises(DataError, match=f"recipe has '{field}', which only the command line may say"):
        parse_arguments(parser_of("train-cls"), words)


def test_a_wrong_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: many")
    with pytest.raises(DataError, match=r"recipe\.yaml: recipe field epochs is 'many'"):
        parse_arguments(parser(), ["--config", config(tmp_path, "recipe.yaml"), "--data-path", "x"])
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1")
    with pytest.raises(DataError, match=r"recipe\.yaml: recipe has 'learning_rate', .* no flag of norton-det train"):
        parse_arguments(parser(), ["--config", config(tmp_path, "recipe.yaml"), "--data-path", "x"])
    (tmp_path / "recipe.yaml").write_text("config: other.yaml")
    with pytest.raises(DataError, match="recipe has 'config'"):
        parse_arguments(parser(), ["--config", config(tmp_path, "recipe.yaml"), "--data-path", "x"])


def test_a_config_for_another_command_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("arch: vgg16_bn_cifar\ndataset: cifar10\n")
    with pytest.raises(DataError, match="arch is 'vgg16_bn_cifar'; expected one of: resnet56_cifar, resnet50"):
        parse_arguments(parser(), ["--config", str(path), "--data-path", "x"])


def test_published_rows_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(config_files().values()) == FILES
    for file in FILES:
        assert read_config(file.stem) == read_config(file)
    with pytest.raises(UsageError, match=r"'resnet56'; expected a \.yaml file or one of: .*resnet56_73m"):
        read_config("resnet56")
    monkeypatch.chdir(tmp_path)
    config(tmp_path, "{}")
    assert read_config("config.yaml").rank == 3
    with pytest.raises(DataError, match="no such file"):
        read_config("resnet56_73m.yaml")


def test_a_config_is_checked_when_it_is_built_in_code() -> None:
    with pytest.raises(UsageError, match="rank is 0"):
        Config("resnet56_cifar", "cifar10", rank=0).spec()
