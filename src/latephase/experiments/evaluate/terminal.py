"""An evaluation as a person sees it at the end of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from latephase.experiments.console import results_console
from latephase.experiments.evaluate.page import lead
from latephase.experiments.evaluate.page_corruptions import errors
from latephase.experiments.evaluate.page_ood import own_detection
from latephase.experiments.evaluate.page_predictions import risk, score
from latephase.experiments.evaluate.seeds import Get, Methods, mean_text
from latephase.experiments.report.numbers import duration


def print_evaluation(results: dict[str, Any], folder: Path) -> None:
    """Print a short table, what it says, and where the report is.

    Args:
        results: The content of evaluation.json.
        folder: Where the report is.
    """
    console = results_console()
    for setting in results["settings"]:
        methods = Methods(setting, "")
        seeds = len(setting["seeds"])
        console.print()
        console.print(Text(setting["title"], style="bold"), Text(f"({seeds} seed{'s' if seeds > 1 else ''})"))
        console.print(_table(methods))
        if "all" in methods.runs(methods.first)[0]["predictions"]["no_temperature"]:
            console.print("no NLL after temperature scaling: the recipe holds no validation images out", soft_wrap=True)
        console.print(Text(f"\u2022 {lead(methods, True)}"))
    console.print()
    console.print(Text(f"{duration(results['seconds'])} on {results['device']}"))
    console.print(Text(f"report: {folder / 'evaluation.html'}", style="bold"), soft_wrap=True)


def _table(methods: Methods) -> Table:
    columns: list[tuple[str, Get, int, float]] = [
        ("accuracy %", score("accuracy"), 2, 100.0),
        ("NLL", score("nll"), 3, 1.0),
        ("NLL scaled", score("nll", "scaled"), 3, 1.0),
        ("ECE %", score("ece"), 2, 100.0),
        ("AURC %", risk("aurc"), 2, 100.0),
    ]
    sets = methods.runs(methods.first)[0]["ood"] or {}
    columns += [(f"AUROC {name} %", own_detection(name), 1, 100.0) for name in list(sets)[:1]]
    if methods.setting["corruptions"]:
        columns.append(("corrupted error %", errors("mean"), 1, 100.0))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method", no_wrap=True)
    shown = [column for column in columns if methods.with_(column[1])]
    for title, *_ in shown:
        table.add_column(title, justify="right")
    for m in methods.names:
        cells = (mean_text(methods.summary(m, get), decimals, factor) for _, get, decimals, factor in shown)
        table.add_row(methods.label(m), *cells, style="bold" if m == methods.first else "")
    return table
