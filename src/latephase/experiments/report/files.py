"""A document as files: the page, its figures' numbers as CSV, its tables as Markdown."""

from __future__ import annotations

from pathlib import Path

from latephase.experiments.checkpoints import write_text
from latephase.experiments.report.document import Document
from latephase.experiments.report.export import csv_text, to_markdown
from latephase.experiments.report.frame import to_html


def write_document(document: Document, page: Path) -> None:
    """Write a report: the page, and beside it `csv/<figure>.csv` for every figure and `tables.md` with every table.

    CSV files of figures that the document does not have are left as they are.

    Args:
        document: The document.
        page: The HTML file to write.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    folder = page.parent
    write_text(page, to_html(document))
    for figure in document.figures():
        write_text(folder / "csv" / f"{figure.name}.csv", csv_text(figure.heads, figure.rows))
    write_text(folder / "tables.md", to_markdown(document))
