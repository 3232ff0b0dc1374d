"""A self-contained web page: text, tables, drawings and images in one file, for any screen, light or dark."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from norton_det.errors import printable

_STYLE = """
:root { color-scheme: light dark;
 --ink: #1c2126; --soft: #5c6670; --paper: #fff; --card: #f4f6f8; --line: #dde2e7; --mark: #2563b8; }
@media (prefers-color-scheme: dark) {
 :root { --ink: #e6e9ec; --soft: #9aa4ae; --paper: #14171a; --card: #1d2226; --line: #333b42; --mark: #7db3f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
 font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: .4rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h2 { overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 52rem; }
.note, figcaption, .tile span { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .4rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; position: sticky; top: 0; background: var(--paper); }
th:first-child, td:first-child { text-align: left; }
table.text td { white-space: normal; text-align: left; overflow-wrap: anywhere; vertical-align: top; }
table.text td:first-child { color: var(--soft); white-space: nowrap; }
figure { margin: .8rem 0 1.2rem; }
figure svg { display: block; height: auto; fill: currentColor; }
figure img { width: 100%; border-radius: .4rem; display: block; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start; }
.beside .rows { max-height: 32rem; overflow-y: auto; margin-top: 1rem; }
.beside > div { max-width: 100%; }
.images { display: grid; gap: 1rem; }
.images figure { margin: 0; }
summary { cursor: pointer; color: var(--mark); }
nav a { color: var(--mark); margin-right: 1rem; }
"""


def _escaped(value: object) -> str:
    """Return a value as text of a page, without control codes and halves of letters."""
    return html.escape(printable(str(value), keep="\n\t"))


def document(title: str, parts: Sequence[str]) -> str:
    """Return a complete page.

    Args:
        title: its title.
        parts: HTML of its parts, in order.

    Example:
        >>> from norton_det.reporting.page import document, paragraph
        >>> "<p>a &lt; b</p>" in document("Report", [paragraph("a < b")])
        True
    """
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{_escaped(title)}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2, anchor: str = "") -> str:
    """Return a heading, which a link may lead to."""
    mark = f' id="{_escaped(anchor)}"' if anchor else ""
    return f"<h{level}{mark}>{_escaped(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text, of a class of the page's style."""
    return f'<p class="{kind}">{_escaped(text)}</p>' if kind else f"<p>{_escaped(text)}</p>"


def links(names: Sequence[tuple[str, str]]) -> str:
    """Return links within the page, each of a text and the anchor of a heading."""
    items = "".join(f'<a href="#{_escaped(anchor)}">{_escaped(text)}</a>' for text, anchor in names)
    return f"<nav>{items}</nav>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return large numbers with their names below, each of a name and a text."""
    items = "".join(f'<div class="tile"><b>{_escaped(v)}</b><span>{_escaped(n)}</span></div>' for n, v in values)
    return f'<div class="tiles">{items}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of numbers.

    Example:
        >>> from norton_det.reporting.page import table
        >>> "<td>0.500</td>" in table(("class", "AP"), [("cat", "0.500")])
        True
    """
    head = "".join(f"<th>{_escaped(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide rows"><table><tr>{head}</tr>{body}</table></div>'


def facts(rows: Sequence[tuple[str, object]]) -> str:
    """Return a table of names and texts."""
    body = "".join(f"<tr><td>{_escaped(name)}</td><td>{_escaped(text)}</td></tr>" for name, text in rows)
    return f'<table class="text">{body}</table>'


def folded(title: str, content: str) -> str:
    """Return HTML that is shown when its title is clicked."""
    return f"<details><summary>{_escaped(title)}</summary>{content}</details>"


def beside(parts: Sequence[str]) -> str:
    """Return parts next to each other, or below each other where a screen is too narrow."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def drawing(svg: str, width: int, caption: str = "") -> str:
    """Return a drawing with a caption; on a narrow screen it shrinks a little, and can be moved.

    Args:
        svg: the SVG element.
        width: its width in pixels where there is room.
        caption: plain text.
    """
    sized = svg.replace("<svg ", f'<svg style="width: {width}px; max-width: max(100%, {round(0.6 * width)}px)" ', 1)
    return f'<figure style="max-width: {width}px"><div class="wide">{sized}</div>{_caption(caption)}</figure>'


def images(pictures: Sequence[Tensor], captions: Sequence[str]) -> str:
    """Return images (3, H, W), uint8, with their captions; they are stored in the page as JPEG."""
    least = round(0.6 * max((picture.shape[2] for picture in pictures), default=0))
    figures = []
    for picture, caption in zip(pictures, captions, strict=True):
        source = f"data:image/jpeg;base64,{_jpeg(picture)}"
        image = f'<img style="min-width: {least}px" alt="{_escaped(caption)}" src="{source}">'
        figures.append(f'<figure><div class="wide">{image}</div>{_caption(caption)}</figure>')
    columns = f"grid-template-columns: repeat(auto-fill, minmax(min(100%, {least}px), 1fr))"
    return f'<div class="images" style="{columns}">{"".join(figures)}</div>'


def _caption(text: str) -> str:
    return f"<figcaption>{_escaped(text)}</figcaption>" if text else ""


def _jpeg(picture: Any) -> str:
    buffer = io.BytesIO()
    TF.to_pil_image(picture).save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
