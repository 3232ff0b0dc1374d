"""Spec and the rate notation."""

import json

import pytest

from norton_det.errors import DataError, UsageError
from norton_det.notation import format_ranks, format_rates, parse_ranks, parse_rates
from norton_det.registry import Registry
from norton_det.spec import VERSION, DecomposedLayer, Spec


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("[0.]+[0.1]*2+[0.4]*3", [0, 0.1, 0.1, 0.4, 0.4, 0.4]),
        ("[0.5]", [0.5]),
        (" [0.1, 0.2]*2 + [.3] ", [0.1, 0.2, 0.1, 0.2, 0.3]),
        ("[1e-1]*0+[0]", [0]),
    ],
)
def test_rates(text: str, rates: list[float]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a term"),
        ("0.5", "character 1, got '0.5'"),
        ("[0.1]*", r"expected \+ at character 6"),
        ("[0.1]+", "character 7"),
        ("[0.1][0.2]", r"expected \+ at character 6"),
        ("[a]", "'a' is no number"),
        ("[]", "'' is no number"),
        ("[1.]", "rate 1.0 is outside 0 <= rate < 1"),
        ("[-0.1]", "rate -0.1 is outside"),
        ("[nan]", "rate nan is outside"),
        ("[0.1]*2+__import__('os')", "character 9"),
    ],
)
def test_malformed_rates_are_located(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_rates(text)


def test_spec_survives_json() -> None:
    spec = Spec(
        "resnet50",
        10,
        {"layer1.0.conv2": DecomposedLayer("cp", 2), "layer1.1.conv2": DecomposedLayer("tucker2", (3, 4))},
        widths={"layer1": 3},
        kept={"layer1": (0, 4, 9)},
        options={"min_size": [64]},
        provenance={"source": "here"},
        classes=("__background__", "a", "N/A", "N/A", *"bcdefg"),
        keypoints=("top", "left"),
    )
    again = Spec.from_json(spec.to_json())
    assert json.loads(again.to_json()) == json.loads(spec.to_json())
    assert again == spec
    assert again.provenance == spec.provenance


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is a list"),
        ('{"arch": "resnet50"}', "lacks num_classes"),
        ('{"arch": "a", "num_classes": 1, "rank": 3}', "unknown fields rank"),
        ('{"arch": "a", "num_classes": -1}', "num_classes is -1; expected a positive integer"),
        ('{"arch": "a", "num_classes": false}', "num_classes is False; expected a positive integer"),
        ('{"arch": "a", "num_classes": true}', "num_classes is True"),
        ('{"arch": "a", "num_classes": 2, "ranks": {"x": 1.5}}', r"decompositions\['x'\] rank is 1.5"),
        ('{"arch": "a", "num_classes": 2, "ranks": {"x": [2, 0]}}', r"decompositions\['x'\] rank is \(2, 0\)"),
        (
            '{"arch": "a", "num_classes": 2, "ranks": {"x": 0}}',
            r"decompositions\['x'\] rank is 0; expected a positive integer or two",
        ),
        (
            '{"version": 1, "arch": "a", "num_classes": 2, "decompositions": {"x": {"rank": 1}}}',
            r"decompositions\['x'\] is \{'rank': 1\}; expected the fields method and rank",
        ),
        (
            '{"version": 1, "arch": "a", "num_classes": 2, "decompositions": {"x": {"method": 2, "rank": 1}}}',
            r"decompositions\['x'\] method is 2; expected a string",
        ),
        (
            '{"version": 1, "arch": "a", "num_classes": 2, "ranks": {}}',
            "unknown fields ranks; expected arch, num_classes",
        ),
        ('{"version": -1, "arch": "a", "num_classes": 2}', "version is -1; expected an integer from 0 to 3"),
        (
            '{"version": 4, "norton_det": "0.9", "arch": "a", "num_classes": 2, "shape": 3}',
            r"format version 4, written by norton_det 0\.9; this norton_det \(.*\) reads versions up to 3: "
            r"install norton_det 0\.9 or newer",
        ),
        ('{"arch": "a", "num_classes": 2, "classes": ["a"]}', r"classes is \['a'\]; expected 2 names, or none"),
        ('{"arch": "a", "num_classes": 2, "classes": ["a", "a"]}', r"classes is \['a', 'a'\]; expected distinct names"),
        ('{"arch": "a", "num_classes": 2, "classes": ["a", 1]}', r"classes is \['a', 1\]; expected names"),
        ('{"arch": "a", "num_classes": 2, "keypoints": "ab"}', "keypoints is 'ab'; expected names"),
        ('{"arch": "a", "num_classes": 2, "widths": []}', "widths is \\[\\]; expected a mapping"),
        ('{"arch": "a", "num_classes": 2, "widths": {"g": 2}, "kept": {"g": 3}}', r"kept\['g'\] is 3; expected a list"),
        ('{"arch": "a", "num_classes": 2, "widths": {"g": 1}, "kept": {"g": ["a"]}}', "expected a list of channel"),
        ('{"arch": "a", "num_classes": 2, "widths": {"g": 2}, "kept": {"g": [3, 1]}}', "ascending order"),
        ('{"arch": "a", "num_classes": 2, "widths": {"g": 3}, "kept": {"g": [1, 3]}}', r"2 channels"),
    ],
)
def test_wrong_specs_name_the_field(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Spec.from_json(text)


def test_options_that_no_file_can_hold() -> None:
    with pytest.raises(UsageError, match=r"options\['box_head'\] is a object"):
        Spec("a", 2, options={"box_head": object()}).to_json()


def test_registry() -> None:
    registry: Registry[int] = Registry("thing")
    registry.register("b", 1)
    registry.register("a", 2)
    assert (registry["a"], list(registry), "b" in registry) == (2, ["a", "b"], True)
    with pytest.raises(ValueError, match="thing 'a' is registered already"):
        registry.register("a", 3)
    with pytest.raises(UsageError, match="unknown thing 'c'; expected one of: a, b"):
        _ = registry["c"]


@pytest.mark.parametrize("text", ["[0.]", "[0.]+[0.1]*2+[0.4]*5+[0.75]*12", "[0.5]*3+[0.]+[0.5]"])
def test_rates_are_written_as_they_are_read(text: str) -> None:
    assert format_rates(parse_rates(text)) == text


@pytest.mark.parametrize("text", ["[2]", "[0]*3+[2]*9+[8x12]+[3]*18"])
def test_ranks_are_written_as_they_are_read(text: str) -> None:
    assert format_ranks(parse_ranks(text)) == text


@pytest.mark.parametrize("number", ["1.5", "-1", "8x", "8x0", "x", ""])
def test_malformed_ranks_are_named(number: str) -> None:
    with pytest.raises(UsageError, match=rf"rank .*: '{number}' is no rank; expected a number like 2"):
        parse_ranks(f"[2]+[{number}]")


def test_specs_of_files_without_a_version_are_read() -> None:
    old = '{"arch": "a", "num_classes": 2, "ranks": {"x": [2, 3], "y": 4}, "decomposition": "tucker2"}'
    spec = Spec.from_json(old)
    assert spec == Spec("a", 2, {"x": DecomposedLayer("tucker2", (2, 3)), "y": DecomposedLayer("tucker2", 4)})
    assert json.loads(spec.to_json())["version"] == VERSION
