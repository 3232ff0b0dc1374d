"""The constraints file of the lowest versions."""

import tomllib

import pytest

from scripts.lowest_versions import PYPROJECT, lowest_versions, main


def test_each_bound_becomes_a_version() -> None:
    optional = {"plot": ["matplotlib>=3.9"], "dev": ["norton-det[plot,fast]", "pytest>=8", "types-tqdm"]}
    found = lowest_versions(
        {"dependencies": ["torch>=2.10", "fvcore >= 0.1.5.post2"], "optional-dependencies": optional}
    )
    assert found == {"torch": "2.10", "fvcore": "0.1.5.post2", "matplotlib": "3.9", "pytest": "8"}


@pytest.mark.parametrize("dependency", ["torch", "torch[x]", "torch==2.10", "torch>=2.10,<3", "torch>=2; x"])
def test_what_has_no_plain_lower_bound_is_named(dependency: str) -> None:
    with pytest.raises(ValueError, match=r"dependency 'torch.*expected"):
        lowest_versions({"dependencies": ["numpy>=1.26", dependency]})


def test_the_file_holds_every_dependency(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    lines = capsys.readouterr().out.splitlines()
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    assert {line.partition("==")[0] for line in lines} >= {text.partition(">=")[0] for text in project["dependencies"]}
    assert all(line.partition("==")[2] for line in lines)
