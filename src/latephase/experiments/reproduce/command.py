"""`latephase reproduce TABLE`."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latephase.experiments.checkpoints import write_text
from latephase.experiments.command_line import help_is_asked, option_parser, parse_known, print_usage
from latephase.experiments.console import results_console
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.reproduce.render import as_csv, markdown, notes, terminal_table
from latephase.experiments.reproduce.run import Request, plan, reproduce
from latephase.experiments.reproduce.tables import paper_tables

_USAGE = (
    "latephase reproduce [TABLE] [--rows NAME,...] [--seeds N] [--scale FACTOR] [--model NAME] [--dry-run] "
    "[--output FOLDER] [--workers N] [--section.key VALUE ...]"
)


def main(arguments: list[str]) -> int:
    """Run the rows of one of the paper's tables and print them beside the published numbers; list the tables.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument is not what it should be, nothing can be run, or a run fails.
    """
    console = results_console()
    if help_is_asked(arguments):
        print_usage(console, _USAGE)
        return 0
    if not arguments:
        console.print(_overview())
        return 0
    name, rest = arguments[0], arguments[1:]
    known = paper_tables()
    if name not in known:
        raise unknown("table", name, known)
    options, overrides = _options(rest)
    table = known[name] if options.rows is None else known[name].choose(options.rows.split(","))
    request = Request(table, overrides, options.model, options.scale, options.seeds)
    command = shlex.join(["latephase", "reproduce", *arguments])
    if options.dry_run:
        _print(console, plan(request, command=command))
        return 0
    folder = options.output or Path("runs") / _folder(name, options)
    result = reproduce(
        request, folder, command=command, workers=options.workers, on_table=lambda part: _write(folder, part)
    )
    _write(folder, result)
    _print(console, result)
    console.print(Text(f"table: {folder / 'table.md'}", style="bold"), soft_wrap=True)
    return 0


def _overview() -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("table", "what", "rows"):
        shown.add_column(column, no_wrap=column == "table")
    for table in paper_tables().values():
        shown.add_row(table.name, table.title, ", ".join(row.name for row in table.rows))
    return shown


def _print(console: Console, table: dict[str, Any]) -> None:
    console.print(terminal_table(table))
    for note in notes(table):
        console.print(Text(note), style="dim" if note.startswith("Test ") else "default")


def _write(folder: Path, table: dict[str, Any]) -> None:
    write_text(folder / "table.json", json.dumps(table, indent=1) + "\n")
    write_text(folder / "table.md", markdown(table))
    write_text(folder / "table.csv", as_csv(table))


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser()
    parser.add_argument("--rows")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--model")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--dry-run", action="store_true")
    options, rest = parse_known(parser, arguments)
    for name in ("seeds", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ExperimentError(f"--{name} {value} is not valid; it takes a whole number from 1")
    return options, rest


def _folder(name: str, options: argparse.Namespace) -> str:
    model = "" if options.model is None else f"-{options.model.replace(':', '-')}"
    return f"reproduce-{name}{model}" + ("" if options.scale is None else f"-x{options.scale:g}")
