"""A table: the terminal, the page and the CSV file show the same cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes:
        name: File name without suffix.
        title: One line.
        text: How to read it.
        header: Column names.
        rows: Cells; floats are printed with `digits`.
        digits: Significant digits after the point of the printed floats.
    """

    name: str
    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    digits: int = 4

    def printed(self) -> list[list[str]]:
        """The cells as they are shown."""
        return [[self._print(cell) for cell in row] for row in self.rows]

    def _print(self, cell: str | int | float) -> str:
        return f"{cell:.{self.digits}f}" if isinstance(cell, float) else str(cell)

    def write_csv(self, folder: Path) -> Path:
        """Write the cells with all their digits to `<name>.csv`.

        Args:
            folder: Where to write.

        Returns:
            The file.
        """
        path = folder / f"{self.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows([f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row] for row in self.rows)
        return path
