"""The results as a person sees them at the end of a command."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from latephase.experiments.console import results_console
from latephase.experiments.report.numbers import MINUS, SCORES, difference, duration, has_members, mean
from latephase.experiments.report.sentences import findings, headline
from latephase.experiments.report.wording import wording

_Column = tuple[str, Callable[[dict[str, Any]], str]]
_WIDE, _GAP = 116, 2


def print_results(results: dict[str, Any], folder: Path) -> None:
    """Print the tables, what they say, and where the report is.

    Args:
        results: The content of results.json.
        folder: The run folder.
    """
    console = results_console()
    for setting in results["settings"]:
        seeds = len(setting["seeds"])
        console.print()
        console.print(Text(setting["title"], style="bold"), Text(f"({seeds} seed{'s' if seeds > 1 else ''})"), end="")
        console.print()
        for table in _tables(setting, console.width):
            console.print(table)
        if results["kind"] == "compare":
            console.print(_said(setting))
    console.print()
    legs = results["legs"]
    if not legs["trained_now"]:
        console.print("Everything was trained before; remove the folder to train it again.")
    console.print(Text(f"{duration(results['seconds'])} on {results['device']}"))
    console.print(Text(f"report: {folder / 'report.html'}", style="bold"), soft_wrap=True)


def _said(setting: dict[str, Any]) -> Table:
    """What the numbers say, a sentence in a row."""
    said = Table.grid(padding=(0, 1))
    for sentence in (headline(setting), *findings(setting)):
        said.add_row("\u2022", Text(sentence))
    return said


def _tables(setting: dict[str, Any], width: int) -> list[Table]:
    """One table, or on a narrow terminal two: the first score and its differences, then the other scores."""
    methods, words = setting["methods"], wording(setting)
    unit = f", {words.score.gap}" if words.score.gap == "points" else ""
    against = [other for other in ("base", "swa") if any(other in m["against"] for m in methods.values())]
    first: list[_Column] = [(_head(words.main), lambda m: mean(m["test"][words.main], words.main))]
    first += [(f"{MINUS} {methods[other]['label']}{unit}", partial(_against, other, words.main)) for other in against]
    percent = " %" if words.score.unit == "%" else ""
    second: list[_Column] = [
        *((_head(metric), partial(_part, "test", metric)) for metric in words.metrics[1:]),
        (f"ensemble{percent}", lambda m: _part("ensemble", words.main, m) if has_members(m) else ""),
        ("time", lambda m: duration(sum(m["seconds"][part]["mean"] for part in ("shared", "own", "evaluation")))),
    ]
    tables = []
    for columns in _fitting([first, second], methods, width):
        table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim")
        table.add_column("method")
        for title, _ in columns:
            table.add_column(title, justify="right", no_wrap=True)
        for method in methods.values():
            style = "bold" if method["label"].startswith("late-phase") else ""
            table.add_row(method["label"], *(cell(method) for _, cell in columns), style=style)
        tables.append(table)
    return tables


def _fitting(groups: list[list[_Column]], methods: dict[str, Any], width: int) -> list[list[_Column]]:
    """The columns of each table: all in one if they fit, else each group in as many as it takes.

    Names of methods may be wrapped, numbers not.
    """
    names = max(len(word) for method in methods.values() for word in method["label"].split())

    def taken(columns: list[_Column]) -> int:
        cells = [max(len(title), *(len(cell(m)) for m in methods.values())) for title, cell in columns]
        return names + _GAP * (1 + len(cells)) + sum(cells)

    whole = [column for group in groups for column in group]
    if width >= _WIDE and taken(whole) <= width:
        return [whole]
    parts: list[list[_Column]] = []
    for group in groups:
        parts.append(group[:1])
        for column in group[1:]:
            if taken([*parts[-1], column]) <= width:
                parts[-1].append(column)
            else:
                parts.append([column])
    return parts


def _head(metric: str) -> str:
    score = SCORES[metric]
    return f"{score.name} %" if score.unit == "%" else score.short or score.name


def _against(other: str, metric: str, method: dict[str, Any]) -> str:
    return difference(method["against"][other][metric], metric) if other in method["against"] else ""


def _part(part: str, metric: str, method: dict[str, Any]) -> str:
    return mean({**method[part][metric], "se": None}, metric)
