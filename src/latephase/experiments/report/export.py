"""A document's figures as CSV and its tables as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from latephase.experiments.report.document import Document, Table


def csv_text(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""Numbers as CSV, unrounded; what is not known is an empty cell.

    Args:
        heads: Names of the columns.
        rows: The numbers.

    Returns:
        The file's text.

    Example:
        >>> csv_text(["method", "error"], [["base", 0.25], ["swa", None]])
        'method,error\nbase,0.25\nswa,\n'
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _harmless(cell: object) -> object:
    # A spreadsheet would take such a name for a formula, and carry it out.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def to_markdown(document: Document) -> str:
    """Every table of a document, under the headings of its sections.

    Args:
        document: The document.

    Returns:
        Markdown.
    """
    parts = [f"# {_text(document.title)}", _text(document.facts)]
    for section in document.sections:
        tables = [block for block in section.blocks if isinstance(block, Table)]
        if tables:
            parts += [f"## {_text(section.title)}", *(_table(table) for table in tables)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    lines = [_row(table.heads), "|".join(["", *("---" for _ in table.heads), ""])]
    lines += [_row(row) for row in table.rows]
    note = f"\n\n{_text(table.note)}" if table.note else ""
    return f"### {_text(table.title)}\n\n" + "\n".join(lines) + note


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(cell: str) -> str:
    return _text(cell).replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _text(text: str) -> str:
    # Markdown may have HTML in it.
    return text.replace("&", "&amp;").replace("<", "&lt;")
