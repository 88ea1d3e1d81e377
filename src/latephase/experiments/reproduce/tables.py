"""The published tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

import yaml

from latephase.experiments.errors import unknown


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        name: What `--rows` calls it.
        label: What the table calls it.
        recipe: The shipped recipe with its hyper-parameters.
        method: The method of that recipe.
        value: Published test score, an accuracy in percent; None for a row without a number.
        sd: Its published standard deviation over seeds.
        n: Published number of seeds.
        note: What is published instead of a number.
    """

    name: str
    label: str
    recipe: str
    method: str
    value: float | None = None
    sd: float | None = None
    n: int | None = None
    note: str | None = None

    @property
    def se(self) -> float | None:
        """Standard error of the published mean, where it follows from what is published."""
        return None if self.sd is None or self.n is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True)
class PaperTable:
    """A published table.

    Attributes:
        name: What the command calls it.
        title: What it is about.
        rows: Its rows.
        metric: The score that is published.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    metric: str = "accuracy"

    def choose(self, names: Sequence[str]) -> PaperTable:
        """Some of the rows.

        Args:
            names: Their names.

        Returns:
            The table with these rows, in its own order.

        Raises:
            ExperimentError: If there is no such row.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise unknown(f"row of {self.name}", name, known)
        return replace(self, rows=tuple(row for row in self.rows if row.name in names))


def paper_tables() -> dict[str, PaperTable]:
    """Every published table that there are recipes for.

    Returns:
        The tables by name.

    Example:
        >>> paper_tables()["cifar10"].rows[0].value
        96.16
    """
    text = (resources.files("latephase.experiments.reproduce") / "tables.yaml").read_text(encoding="utf-8")
    tables = {}
    for name, table in yaml.safe_load(text).items():
        metric = table.get("metric", "accuracy")
        rows = (Row(name=row, value=values.pop(metric, None), **values) for row, values in table["rows"].items())
        tables[name] = PaperTable(name, table["title"], tuple(rows), metric)
    return tables
