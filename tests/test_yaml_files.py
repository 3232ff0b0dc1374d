"""YAML of strangers: plain values within limits, or an error in one line."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.config import config_files
from norton_det.errors import DataError, UsageError
from norton_det.notation import parse_ranks, parse_rates
from norton_det.yaml_files import MOST_BYTES, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "an alias bomb": (BOMB, "more than 10,000 values"),
    "an alias of itself": ("a: &a [*a]", "an alias refers to what it is in"),
    "a merge with itself": ("a: &a {<<: *a}", "an alias refers to what it is in"),
    "deep lists": ("a: " + "[" * 1000 + "]" * 1000, "more than 20 levels"),
    "deep mappings": ("a: " + "{a: " * 5000, "more than 20 levels"),
    "a key twice": ("rank: 2\nrates: x\nrank: 3", "line 3: 'rank' comes twice"),
    "a key twice below": ("recipe: {lr: 1, lr: 2}", "line 1: 'lr' comes twice"),
    "a date by its tag": ("a: !!timestamp 2026-13-45", "no YAML"),
    "code": ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    "no truth": ("a: !!bool x", "no YAML"),
    "no number": ("a: !!int x", "no YAML"),
    "a long number": ("a: " + "9" * 5000, "no YAML"),
    "a list as a key": ("? [a]\n: 1", "no YAML"),
    "two documents": ("a: 1\n---\nb: 2", "no YAML"),
    "a list": ("[1, 2]", "holds a list; expected a config: fields with values"),
    "nothing": ("", "holds a NoneType"),
    "numbers as keys": ("1: 2", "holds a dict; expected a config: fields with values"),
    "control codes": ("a: \x01", "no YAML"),
    "a large file": ("a: " + "x" * MOST_BYTES, "has 100,003 bytes; expected a config, at most 100,000"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    text, problem = REFUSED[kind]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_yaml(path, "a config")
    assert str(error.value).startswith(f"{path}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(DataError, match="utf-8"):
        read_yaml(path, "a config")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(yaml.safe_dump(values))
    assert read_yaml(path, "values") == values


def test_aliases_and_merged_keys_are_replaced_and_dates_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &base {lr: 0.1, when: 2026-01-31}\nrecipe: {<<: *base, lr: 0.2}\nagain: *base\n")
    base = {"lr": 0.1, "when": "2026-01-31"}
    assert read_yaml(path, "a config") == {"base": base, "recipe": {**base, "lr": 0.2}, "again": base}


def test_the_configs_are_as_yaml_reads_them() -> None:
    for path in config_files().values():
        assert read_yaml(path, "a config") == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("times", ["10001", "999999999", "9" * 5000])
def test_a_short_text_does_not_stand_for_many_values(times: str) -> None:
    for read in (parse_rates, parse_ranks):
        with pytest.raises(UsageError, match="more than 10,000 values; expected one for each layer or group") as error:
            read(f"[0]*{times}")
        assert len(str(error.value)) < 200
        with pytest.raises(UsageError, match="more than 10,000 values"):
            read("+".join(["[0]*5000"] * 3))
    assert len(parse_rates("[0]*10000")) == 10000
