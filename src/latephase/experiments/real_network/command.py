"""`latephase nqp-real`: the quadratic model of a real network beside its measured training."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from latephase.experiments.checkpoints import write_text
from latephase.experiments.command_line import help_is_asked
from latephase.experiments.console import results_console
from latephase.experiments.device import describe_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.origin import commit, versions
from latephase.experiments.real_network.figures import losses_figure, standalone
from latephase.experiments.real_network.findings import findings, headline
from latephase.experiments.real_network.page import report, table
from latephase.experiments.real_network.setting import Setting
from latephase.experiments.real_network.study import steps, study
from latephase.experiments.report.files import write_document

_PRINTED = 6  # columns of the table; a terminal has no room for the others


def main(arguments: list[str]) -> int:
    """Predict and measure, print the table, write results.json, report.html with its CSV files, and the figure.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument is not what it should be, or training diverged.
    """
    begun = time.perf_counter()
    parser = _parser()
    if help_is_asked(arguments):
        parser.print_help()
        return 0
    try:
        parsed = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise ExperimentError(" ".join(str(error).split())) from error
    folder = Path(parsed.pop("output"))
    parsed.pop("config", None)
    setting = Setting(**parsed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sums are then the same on every machine with one kind of processor
    try:
        with _bar() as bar:
            task = bar.add_task("", total=steps())
            numbers = study(setting, lambda what: bar.update(task, advance=1, description=what))
    finally:
        torch.set_num_threads(threads)
    results = {
        "kind": "nqp-real",
        "command": shlex.join(["latephase", "nqp-real", *arguments]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": describe_device(torch.device("cpu")),
        "seconds": time.perf_counter() - begun,
        "versions": versions(),
        "setting": asdict(setting),
        **numbers,
    }
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    document = report(results)
    write_document(document, folder / "report.html")
    write_text(folder / "loss-curves.svg", standalone(losses_figure(results).svg))
    console = results_console()
    shown = table(results)
    printed = Table(title=shown.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, head in enumerate(shown.heads[:_PRINTED]):
        printed.add_column(head, justify="right" if i else "left", no_wrap=i > 0)
    for row in shown.rows:
        printed.add_row(*row[:_PRINTED])
    console.print(printed)
    for sentence in (headline(results), *findings(results)):
        console.print(Text(f"\u2022 {sentence}"))
    console.print(Text(f"report: {folder / 'report.html'}", style="bold"), soft_wrap=True)
    return 0


def _parser() -> ArgumentParser:
    made = ArgumentParser(
        prog="latephase nqp-real",
        description="Estimate curvatures and gradient noise of a small network on digits, predict its loss curves from"
        " them, and measure these.",
        exit_on_error=False,
    )
    made.add_argument("--config", action="config", help="YAML file with any of the options below")
    made.add_argument("--output", default="runs/nqp-real", help="folder for results.json, the report and its CSV files")
    made.add_class_arguments(Setting)
    return made


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
