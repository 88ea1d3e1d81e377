"""The whole theory as one HTML file: figures, tables, light and dark, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from latephase.experiments.theory import draw
from latephase.experiments.theory.panel import Figure, Panel
from latephase.experiments.theory.table import Table

_CARDS = """
  table{0}, {0} tbody, {0} tr, {0} td {{ display: block; width: auto }}
  {0} thead {{ display: none }}
  {0} tr {{ border-top: 1px solid var(--grid); padding: .5rem 0 }}
  {0} td {{ display: flex; justify-content: space-between; border: 0; padding: .1rem 0; text-align: right }}
  {0} td::before {{ content: attr(data-label); color: var(--soft); padding-right: 1rem; text-align: left }}
"""
_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; $light --soft: #5c6166; --card: #ffffff }
@media (prefers-color-scheme: dark) { :root { $dark --soft: #a4abb3; --card: #1b1f24 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .4rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem }
p { max-width: 46rem; margin: .3rem 0 .9rem }
ul { padding-left: 1.2rem }
.lead, caption, footer { color: var(--soft) }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
figure { margin: 0; max-width: 34rem; border: 1px solid var(--grid);
  border-radius: .5rem; padding: .6rem }
figure svg { display: block; width: 100%; height: auto }
figcaption { font-size: .85rem; text-align: right }
a { color: var(--blue) }
table { border-collapse: collapse; width: 100%; font-size: .82rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .4rem; border-bottom: 1px solid var(--grid) }
th { vertical-align: bottom; font-weight: 600 }
th:first-child, td:first-child { text-align: left }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border: 1px solid var(--grid);
  border-radius: .5rem; padding: .7rem; font-size: .82rem }
@media (max-width: 44rem) { $cards }
@media (max-width: 72rem) { $wide_cards }
@media print { figure { break-inside: avoid } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="lead">$lead</p>
$findings
$body
<h2>How to get this page again</h2>
<pre>$command</pre>
<p>with this configuration:</p>
<pre>$config</pre>
<footer><p>latephase $version</p></footer>
</body>
</html>
"""
)


def write_page(
    path: Path,
    figures: Sequence[Figure],
    drawings: Mapping[str, str],
    tables: Sequence[Table],
    findings: Sequence[str],
    *,
    command: str,
    config: str,
    version: str,
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        figures: Figures in order.
        drawings: Each panel's SVG document by its name.
        tables: Tables in order.
        findings: One sentence each, in plain text.
        command: The command line that was given.
        config: The resolved configuration as YAML.
        version: The library's version.
    """
    parts = [_figure(figure, drawings) for figure in figures] + [_table(table) for table in tables]
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings)
    document = _PAGE.substitute(
        title="Late-phase weights on the noisy quadratic problem",
        lead="Expected losses, computed exactly; simulated values carry their standard error. Every count is in"
        " minibatches, for every method.",
        light=" ".join(f"--{name}: {colours[0]};" for name, colours in draw.PAGE_COLOURS.items()),
        dark=" ".join(f"--{name}: {colours[1]};" for name, colours in draw.PAGE_COLOURS.items()),
        cards=_CARDS.format(""),
        wide_cards=_CARDS.format(".wide"),
        findings=f"<ul>{sentences}</ul>" if findings else "",
        body="\n".join(parts),
        command=html.escape(command),
        config=html.escape(config),
        version=html.escape(version),
    )
    path.write_text(document, encoding="utf-8")


def _figure(figure: Figure, drawings: Mapping[str, str]) -> str:
    panels = "\n".join(_panel(panel, drawings[panel.name]) for panel in figure.panels)
    title, text = html.escape(figure.title), html.escape(figure.text)
    return f'<h2>{title}</h2>\n<p>{text}</p>\n<div class="panels">\n{panels}\n</div>'


def _panel(panel: Panel, drawing: str) -> str:
    element = draw.for_page(drawing)
    # Names inside an SVG are global on a page: give every panel its own.
    element = re.sub(r'\bid="', f'id="{panel.name}-', element)
    element = re.sub(r'href="#', f'href="#{panel.name}-', element)
    element = re.sub(r"url\(#", f"url(#{panel.name}-", element)
    label = html.escape(f"{panel.title}: {panel.y_label} against {panel.x_label}", quote=True)
    element = re.sub(
        r'^<svg\b[^>]*?viewBox="([^"]*)"[^>]*>',
        lambda match: f'<svg viewBox="{match[1]}" role="img" aria-label="{label}">',
        element,
        count=1,
        flags=re.DOTALL,
    )
    lines = [",".join(("curve", "x", "y", "standard_error"))]
    lines += [",".join((f'"{label}"', *numbers)) for label, *numbers in panel.rows()]
    link = _download(f"{panel.name}.csv", "\n".join(lines) + "\n")
    return f"<figure>{element}<figcaption>{link}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = []
    for row in table.printed():
        cells = (
            f'<td data-label="{html.escape(name, quote=True)}">{html.escape(cell)}</td>'
            for name, cell in zip(table.header, row, strict=True)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="wide"' if len(table.header) > 8 else ""
    body = "\n".join(rows)
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<p>{html.escape(table.text)}</p>\n"
        f"<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    )


def _download(name: str, text: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{name}" href="data:text/csv;base64,{data}">numbers (CSV)</a>'
