"""``--list-rates``: the numbers that are printed are those that compress takes."""

import pytest
from conftest import tool
from hypothesis import given, settings
from hypothesis import strategies as st

import norton_det as nd
from norton_det.cli.list_rates import list_rates
from norton_det.models import ARCHITECTURES
from norton_det.structure.settings import spec_from_configuration

CASES = [(arch, scope) for arch in ARCHITECTURES for scope in ARCHITECTURES[arch].scopes or (None,)]


def rows(arch: str, scope: str | None, kind: str) -> list[list[str]]:
    """Return the rows of the table of "rate" or "rank"."""
    blocks = list_rates(arch).split("\n\n")
    where = f" with --scope {scope}" if scope else ""
    (index,) = [i for i, text in enumerate(blocks) if text.startswith(f"{arch}{where}") and f" {kind}s" in text]
    header, _, *lines = blocks[index + 1].splitlines()
    assert header.split()[0] == kind
    listed = [line.split() for line in lines]
    assert f"takes {listed[-1][0]} {kind}s" in blocks[index]
    return listed


EXAMPLES = pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.slow)])


@EXAMPLES
def test_a_rate_narrows_the_groups_of_its_number_alone(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.data())(a_rate_narrows_the_groups_of_its_number))()


@EXAMPLES
def test_a_rank_decomposes_the_layer_of_its_number_alone(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.data())(a_rank_decomposes_the_layer_of_its_number))()


def a_rate_narrows_the_groups_of_its_number(data: st.DataObject) -> None:
    arch, scope = data.draw(st.sampled_from(CASES), label="architecture and scope")
    listed = rows(arch, scope, "rate")
    count = int(listed[-1][0])
    number = data.draw(st.integers(1, count))
    rates = [0.5 if i == number else 0.0 for i in range(1, count + 1)]
    spec = spec_from_configuration(arch, rates=rates, scope=scope)
    shown = {row[1]: int(row[2]) // 2 for row in listed if int(row[0]) == number}
    follow = ARCHITECTURES[arch].keeps_width - shown.keys()  # groups that are never wider than what they are made from
    assert {group: width for group, width in spec.widths.items() if group not in follow} == shown
    with pytest.raises(nd.errors.UsageError, match=f"takes {count}"):
        spec_from_configuration(arch, rates=rates[:-1], scope=scope)


def a_rank_decomposes_the_layer_of_its_number(data: st.DataObject) -> None:
    arch, scope = data.draw(st.sampled_from(CASES), label="architecture and scope")
    listed = rows(arch, scope, "rank")
    number = data.draw(st.integers(1, len(listed)))
    ranks = "+".join("[2]" if i == number else "[0]" for i in range(1, len(listed) + 1))
    spec = spec_from_configuration(arch, ranks, scope=scope)
    assert list(spec.decompositions) == [listed[number - 1][1]]


@pytest.mark.parametrize("command", ["compress", "train_det"])
def test_the_option_prints_and_ends_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(command).main(["--list-rates", "resnet50"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == list_rates("resnet50") + "\n"


def test_an_unknown_architecture_is_refused(refused: object) -> None:
    refused(lambda: tool("compress").main(["--list-rates", "alexnet"]), 2, "'alexnet' is unknown; expected one of")
