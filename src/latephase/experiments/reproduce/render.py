"""A reproduced table as Markdown, CSV and on the terminal."""

from __future__ import annotations

import csv
import io
from typing import Any

from rich.table import Table

from latephase.experiments.cost import quantity
from latephase.experiments.report.numbers import duration, number

COLUMNS = ("row", "paper", "ours", "difference", "seeds", "cost")
# As many as are published.
_DECIMALS = {"accuracy": 2, "bpc": 3}
_SCORES = {
    "accuracy": "Test accuracy in percent. paper: \u00b1 as published, taken for the deviation over seeds; ours and ",
    "bpc": "Test bits per character; lower is better. ours and ",
}


def cells(row: dict[str, Any], metric: str) -> list[str]:
    """A row's cells, in the order of `COLUMNS`.

    Args:
        row: One of the table's `rows`.
        metric: The table's score.

    Returns:
        Six texts.
    """
    decimals = _DECIMALS[metric]
    published, ours, difference, cost = (row[key] for key in ("published", "ours", "difference", "cost"))
    paper = published["note"] or ""
    if published["value"] is not None:
        paper = _value(published["value"], published["sd"], decimals)
    measured = "not run" if ours is None else _value(ours["value"], ours["se"], decimals)
    gap = "" if difference is None else _value(difference["mean"], difference["se"], decimals, signed=True)
    seeds = str(row["seeds"] if ours is None else ours["n"])
    if published["n"] is not None:
        seeds += f" of {published['n']}" if int(seeds) < published["n"] else ""
    price = "" if cost["flops"] is None else f"{quantity(cost['flops'])}FLOP"
    if cost["seconds"] is not None:
        price += f", {duration(cost['seconds'])}"
    return [row["label"], paper, measured, gap, seeds, price]


def notes(table: dict[str, Any]) -> list[str]:
    """What has to be read with the table, one sentence each.

    Args:
        table: The table.

    Returns:
        Sentences.
    """
    lines = []
    if table["deviations"]:
        lines.append(f"This is not what was published: {'; '.join(table['deviations'])}.")
    for name, own in table["own_deviations"].items():
        lines.append(f"{name}: {'; '.join(own)}.")
    if any(row["ours"] is not None for row in table["rows"]):
        lines.append(
            f"{_SCORES[table['metric']]}difference: \u00b1 one standard error. Cost: of all seeds of a row, what it "
            "shares with others included."
        )
    problems: dict[str, list[str]] = {}
    for row in table["rows"]:
        if row["problem"] is not None:
            problems.setdefault(row["problem"], []).append(row["label"])
    lines += [f"Not run: {', '.join(labels)}: {problem}." for problem, labels in problems.items()]
    return lines


def terminal_table(table: dict[str, Any]) -> Table:
    """The table for a terminal.

    Args:
        table: The table.

    Returns:
        What rich prints.
    """
    shown = Table(title=table["title"], title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="left" if i == 0 else "right", no_wrap=0 < i < len(COLUMNS) - 1)
    for row in table["rows"]:
        shown.add_row(*cells(row, table["metric"]))
    return shown


def markdown(table: dict[str, Any]) -> str:
    """The table as a page.

    Args:
        table: The table.

    Returns:
        Markdown.
    """
    lines = [f"# {table['title']}", "", "```console", f"$ {table['command']}", "```", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row, table['metric']))} |" for row in table["rows"]]
    for note in notes(table):
        lines += ["", note]
    kept = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    lines += ["", f"Commit {table['commit']}, {table['date']}, {table['device']}; {kept}.", ""]
    return "\n".join(lines)


def as_csv(table: dict[str, Any]) -> str:
    """The table's numbers.

    Args:
        table: The table.

    Returns:
        One line for each row, without rounding.
    """
    text = io.StringIO()
    lines = [_numbers(row) for row in table["rows"]]
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    ours, gap = row["ours"] or {}, row["difference"] or {}
    return {
        **{key: row[key] for key in ("row", "recipe", "method")},
        "published": row["published"]["value"],
        "published_se": row["published"]["se"],
        "ours": ours.get("value"),
        "ours_se": ours.get("se"),
        "seeds": ours.get("n"),
        "difference": gap.get("mean"),
        "difference_se": gap.get("se"),
        "flops": row["cost"]["flops"],
        "seconds": row["cost"]["seconds"],
        "problem": row["problem"],
    }


def _value(mean: float, se: float | None, decimals: int, *, signed: bool = False) -> str:
    text = number(mean, decimals, signed)
    return text if se is None else f"{text} ± {number(se, decimals)}"
