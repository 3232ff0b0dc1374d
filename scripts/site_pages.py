"""A hook of MkDocs: pages that are generated, and equations as MathML.

Generated are the help of every command, the public names by topic, and the changelog. Nothing is fetched: equations are
converted here, and the theme is configured without fonts of others.
"""

import argparse
import functools
import html
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import norton_det as nd
from norton_det.cli.main import COMMANDS, first_sentence, parser_of
from norton_det.formatting import table

ROOT = Path(__file__).parents[1]
TOPICS = {
    "compression": ("Compression", ("compression", "training", "cost.budget", "reporting")),
    "files": ("Files and specs", ("checkpoint", "spec", "structure")),
    "detectors": ("Detectors and classifiers", ("builders", "inference", "visualization")),
    "deployment": ("Deployment, export and cost", ("deployment", "export", "cost.complexity")),
    "layers": ("Decomposed layers", ("decompositions",)),
    "networks": ("Networks of your own", ("channels", "models")),
}
"""Pages of the API: file, title, and prefixes of the modules whose public names belong there."""
FURTHER = ("evaluation.coco.CocoEvaluator", "evaluation.compare.compare_results", "structure.settings.kept_widths")
"""Names that are not exported by ``norton_det``, and that the pages mention."""
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages last in the navigation; called by MkDocs."""
    commands = ["commands/index.md", *({name: f"commands/{name}.md"} for name in COMMANDS)]
    api = [f"api/{name}.md" for name in TOPICS]
    config.nav = [*(config.nav or []), {"Commands": commands}, {"API": api}, {"Changes": "changelog.md"}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; called by MkDocs."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Convert equations to MathML; called by MkDocs with the HTML of a page."""
    return _EQUATION.sub(_mathml, content)


@functools.cache
def pages() -> Mapping[str, str]:
    """Return the generated pages by their paths."""
    commands = {f"commands/{name}.md": _command_page(name) for name in COMMANDS}
    api = {f"api/{name}.md": _api_page(title, name) for name, (title, _) in TOPICS.items()}
    changes = {"changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")}
    return {"commands/index.md": _overview(), **commands, **api, **changes}


def names_of(topic: str) -> list[str]:
    """Return the names on a page of the API, with their modules."""
    _, prefixes = TOPICS[topic]
    starts = tuple(f"norton_det.{prefix}" for prefix in prefixes)
    public = (getattr(nd, name) for name in nd.__all__ if name != "__version__")
    names = [f"{value.__module__}.{value.__name__}" for value in public]
    return [name for name in [*names, *(f"norton_det.{name}" for name in FURTHER)] if name.startswith(starts)]


def _mathml(equation: re.Match[str]) -> str:
    display = "block" if equation[2] == "[" else "inline"
    return str(latex2mathml.converter.convert(html.unescape(equation[3]).strip(), display=display))


def _api_page(title: str, topic: str) -> str:
    parts = [f"# {title}", "`import norton_det as nd`"]
    for path in names_of(topic):
        module, _, name = path.rpartition(".")
        value = getattr(importlib.import_module(module), name)
        exported = getattr(nd, name, None) is value
        shown = f"norton_det.{name}" if exported else path
        if getattr(value, "__code__", None) is None or value.__code__.co_name == name:
            parts.append(f"::: {path}\n    options:\n      heading: {shown}\n      toc_label: {name}")
        else:  # made by a function: the documentation is not in the source
            parts.append(f"## {shown} {{ #{path} }}\n\n```text\n{inspect.getdoc(value)}\n```")
    return "\n\n".join(parts) + "\n"


def _overview() -> str:
    rows = [(f"[{name}]({name}.md)", first_sentence(name)) for name in COMMANDS]
    text = "`norton-det COMMAND --help` shows the same. An option without a value is off unless it is given."
    return f"# Commands\n\n{table(('command', 'purpose'), rows, style='markdown')}\n\n{text}\n"


def _command_page(name: str) -> str:
    """Return the page of a command: its description, its examples, and a table of each group of options."""
    parser = parser_of(name)
    text, _, examples = (parser.description or "").partition("\nExample")
    script = textwrap.dedent(examples.partition(":\n")[2]).strip()
    parts = [f"# norton-det {name}", text.strip(), f"```sh\n{script}\n```"]
    for group in parser._action_groups:
        rows = list(_rows(parser, group))
        if rows:
            heading = str(group.title).removeprefix("positional ").capitalize()
            parts += [f"## {heading}", table(("option", "meaning", "default"), rows, style="markdown")]
    return "\n\n".join(parts) + "\n"


def _rows(parser: argparse.ArgumentParser, group: Any) -> Iterator[tuple[str, str, str]]:
    formatter = parser._get_formatter()
    for action in group._group_actions:
        if action.dest == "help":
            continue
        meaning, _, default = formatter._expand_help(action).partition(" (default: ")
        value = (
            ""
            if action.nargs == 0
            else formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        )
        shown = ", ".join(map(_code, action.option_strings)) + (f" {_code(value)}" if value else "")
        yield shown, _plain(meaning), _plain(default.removesuffix(")"))


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", text)
