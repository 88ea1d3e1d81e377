"""A document as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape
from importlib import resources

from latephase.experiments.report.document import (
    Block,
    Code,
    Document,
    Figure,
    Figures,
    Finding,
    Listing,
    Part,
    Points,
    Section,
    Source,
    Table,
    Text,
)
from latephase.experiments.report.export import csv_text

# From so many columns on, the rows of a table are blocks on a tablet, or below the width of a desk, too.
_WIDE, _BROAD = 4, 8


def to_html(document: Document) -> str:
    """Lay a document out as a page: contents, light and dark, for a desk, a phone and paper.

    Args:
        document: The document.

    Returns:
        HTML with style, figures and their numbers inside, and without scripts.
    """
    style = resources.files("latephase.experiments.report").joinpath("style.css").read_text(encoding="utf-8")
    names = _ids(document.sections)
    sections = (_section(section, names[i]) for i, section in enumerate(document.sections))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(document.title)}</title><style>{style}</style></head><body>\n"
        f"<main><header><h1>{escape(document.title)}</h1><p class=facts>{escape(document.facts)}</p>"
        f"{_blocks(document.opening, {})}</header>\n{_contents(document.sections, names)}\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _ids(sections: list[Section]) -> list[dict[str, str]]:
    """For each section the ids of its heading (under "") and of its parts."""
    return [
        {"": f"s{i}"} | {block.title: f"s{i}-{slug(block.title)}" for block in s.blocks if isinstance(block, Part)}
        for i, s in enumerate(sections)
    ]


def slug(text: str) -> str:
    """Text as it may stand in an id or a file name.

    Args:
        text: Any text.

    Returns:
        Lower-case letters, digits and hyphens.

    Example:
        >>> slug("Top-1 error, %")
        'top-1-error'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _contents(sections: list[Section], names: list[dict[str, str]]) -> str:
    entries = []
    for section, ids in zip(sections, names, strict=True):
        parts = "".join(f'<li><a href="#{i}">{escape(title)}</a></li>' for title, i in ids.items() if title)
        inner = f"<ul>{parts}</ul>" if parts else ""
        entries.append(f'<li><a href="#{ids[""]}">{escape(section.title)}</a>{inner}</li>')
    return f"<nav aria-label=Contents><h2>Contents</h2><ol>{''.join(entries)}</ol></nav>"


def _section(section: Section, ids: dict[str, str]) -> str:
    return f'<section id="{ids[""]}"><h2>{escape(section.title)}</h2>{_blocks(section.blocks, ids)}</section>'


def _blocks(blocks: Iterable[Block], ids: dict[str, str]) -> str:
    return "\n".join(_block(block, ids) for block in blocks)


def _block(block: Block, ids: dict[str, str]) -> str:
    match block:
        case Text(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
        case Points(sentences):
            return f"<ul class=key>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
        case Figures(figures):
            return f"<div class=grid>{''.join(_figure(figure) for figure in figures)}</div>"
        case Finding(sentence, figures, notes):
            said = f"<p class=claim>{escape(sentence)}</p>" + "".join(f"<p>{escape(note)}</p>" for note in notes)
            drawn = "".join(_figure(figure) for figure in figures)
            return f'<div class=finding><div class=said>{said}</div><div class="grid proof">{drawn}</div></div>'
        case Table():
            return _table(block)
        case Listing(entries):
            rows = "".join(f"<dt>{escape(name)}</dt><dd>{_value(value)}</dd>" for name, value in entries)
            return f"<dl>{rows}</dl>"
        case Source(title, text, unfolded):
            state = " open" if unfolded else ""
            return f"<details{state}><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
        case Part(title):
            return f'<h3 id="{ids[title]}">{escape(title)}</h3>'


def _value(value: str) -> str:
    return f"<code>{escape(value)}</code>" if isinstance(value, Code) else escape(value)


def _figure(figure: Figure) -> str:
    data = base64.b64encode(csv_text(figure.heads, figure.rows).encode()).decode()
    link = f'<a download="{figure.name}.csv" href="data:text/csv;base64,{data}">numbers (CSV)</a>'
    return (
        f'<figure id="figure-{figure.name}"><h4>{escape(figure.title)}</h4>{figure.svg}'
        f"<figcaption>{escape(figure.caption)} {link}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in table.heads)
    body = []
    for first, *rest in table.rows:
        cells = "".join(
            f'<td data-head="{escape(name)}">{_cell(text)}</td>' if text else '<td class="none"></td>'
            for name, text in zip(table.heads[1:], rest, strict=True)
        )
        mark = ' class="ours"' if first in table.ours else ""
        body.append(f"<tr{mark}><th scope=row>{escape(first)}</th>{cells}</tr>")
    columns = len(table.heads)
    size = "broad" if columns >= _BROAD else "wide" if columns >= _WIDE else "narrow"
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    rows = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    content = f"<div class=table><table class={size}>{rows}</table></div>{note}"
    if table.folded:
        return f"<details><summary>{escape(table.title)}</summary>{content}</details>"
    return f"<h4>{escape(table.title)}</h4>{content}"


def _cell(text: str) -> str:
    return f"<b>{escape(text)}</b>" if text.endswith("*") else escape(text)
