"""What a figure shows, as numbers: the drawing and the CSV file are made of the same ones."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Curve:
    """One line or one set of dots.

    Attributes:
        label: Name in the legend and in the CSV file.
        x: Positions.
        y: Values, as long as `x`.
        look: Name of a look of `draw`.
        error: Standard errors of the values, drawn as bars; None has none.
        legend: Whether the legend lists it.
    """

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    look: str
    error: NDArray[np.float64] | None = None
    legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        name: File name without suffix.
        title: What it shows, in a few words.
        x_label: Horizontal quantity with its unit.
        y_label: Vertical quantity with its unit.
        curves: What is drawn.
        x_log: Logarithmic horizontal axis.
        y_log: Logarithmic vertical axis.
        marks: Positions of thin vertical lines.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    x_log: bool = False
    y_log: bool = True
    marks: Sequence[float] = field(default_factory=tuple)

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The numbers of all curves in long form: curve, x, y, standard error (empty where there is none)."""
        for curve in self.curves:
            for i in range(len(curve.x)):
                error = "" if curve.error is None else f"{curve.error[i]:.6g}"
                yield curve.label, f"{curve.x[i]:.10g}", f"{curve.y[i]:.10g}", error

    def write_csv(self, folder: Path) -> Path:
        """Write the numbers to `<name>.csv`.

        Args:
            folder: Where to write.

        Returns:
            The file.
        """
        path = folder / f"{self.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("curve", "x", "y", "standard_error"))
            writer.writerows(self.rows())
        return path


@dataclass(frozen=True)
class Figure:
    """Panels that belong together.

    Attributes:
        title: One line.
        text: What to see in it.
        panels: One or more panels.
    """

    title: str
    text: str
    panels: Sequence[Panel]
