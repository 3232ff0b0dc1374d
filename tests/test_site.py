"""The documentation site: it is built without network, refers to nothing outside, and has every name and every flag."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import norton_det as nd
from norton_det.cli.main import COMMANDS, parser_of
from scripts.site_pages import TOPICS, names_of, pages

ROOT = Path(__file__).parents[1]
_LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\s(?:src|href)=\"?([^\s\">]+)")
_IN_CSS = re.compile(r"url\(\s*[\"']?(https?:[^)\"']+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a process without network: proxies lead nowhere."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = [(page.name, target) for page in site.rglob("*.html") for target in _LOADED.findall(page.read_text())]
    assert len(loaded) > 100
    assert [target for target in loaded if re.match(r"(?:https?:)?//", target[1])] == []
    assert [found for style in site.rglob("*.css") for found in _IN_CSS.findall(style.read_text())] == []


@pytest.mark.slow
def test_equations_are_mathml(site: Path) -> None:
    method = (site / "method.html").read_text()
    source = re.sub(r"```.*?```", "", (ROOT / "docs" / "method.md").read_text(), flags=re.DOTALL)
    assert method.count("<math") == len(re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", source, re.DOTALL)) > 20
    assert "arithmatex" not in method
    assert not re.search(r">\\[a-zA-Z]+", method), "a command of TeX that the converter does not know"


@pytest.mark.slow
def test_every_public_name_is_documented(site: Path) -> None:
    for topic in TOPICS:
        page = (site / "api" / f"{topic}.html").read_text()
        for name in names_of(topic):
            assert f'id="{name}"' in page, name
            assert f'<h2 id="{name}"' in page, name
        assert ":func:" not in page
        assert ":class:" not in page


def test_every_public_name_has_a_topic() -> None:
    listed = [name.rpartition(".")[2] for topic in TOPICS for name in names_of(topic)]
    public = set(nd.__all__) - {"__version__"}
    assert public <= set(listed)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_has_all_its_options(name: str) -> None:
    page = html.unescape(pages()[f"commands/{name}.md"])
    for action in parser_of(name)._actions:
        for flag in set(action.option_strings) - {"-h", "--help"}:
            assert f"<code>{flag}</code>" in page
    assert f"norton-det {name} " in page.partition("```sh")[2]
