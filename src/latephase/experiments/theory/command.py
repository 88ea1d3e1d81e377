"""`latephase nqp`: compute the theory's figures and tables and write them as SVG, CSV and one HTML page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as TerminalTable

from latephase._version import __version__
from latephase.experiments.console import results_console
from latephase.experiments.theory import annealing, draw, learning_curves, multiplicative, page, start, steady_state
from latephase.experiments.theory.config import MonteCarlo, Multiplicative, Quadratic, TheoryConfig
from latephase.experiments.theory.findings import findings
from latephase.experiments.theory.panel import Figure, Panel
from latephase.experiments.theory.table import Table


class Results:
    """Figures and tables in the order of the page."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.tables: list[Table] = []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows `latephase nqp`; by default the arguments of the process.

    Returns:
        The exit code: 0, or 2 for a mistake that a line on stderr names.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parsed = parser().parse_args(arguments)
        config = config_from_dict(parsed.as_dict())
        output = Path(parsed.output)
        results = compute(config)
        write(results, config, output, shlex.join(["latephase", "nqp", *arguments]))
    except (ArgumentError, ValueError) as error:
        sys.stderr.write(f"latephase: error: {' '.join(str(error).split())}\n")
        return 2
    console = results_console(width=150)
    for table in results.tables:
        console.print(_for_terminal(table), "")
    console.print(f"Figures, tables and the page: {output / 'index.html'}", soft_wrap=True)
    return 0


def parser() -> ArgumentParser:
    """The command line: one option for each field of the configuration.

    Returns:
        The parser, which raises `ArgumentError` instead of ending the process.
    """
    made = ArgumentParser(
        prog="latephase nqp",
        description="Exact theory of late-phase weights on the noisy quadratic problem: figures and tables.",
        exit_on_error=False,
    )
    made.add_argument("--config", action="config", help="YAML file with any of the options below")
    made.add_argument("--output", default="runs/nqp", help="folder for the page, the SVG and the CSV files")
    made.add_class_arguments(TheoryConfig)
    return made


def config_from_dict(values: dict[str, Any]) -> TheoryConfig:
    """Build the configuration from plain values.

    Args:
        values: Sections as dictionaries, and the parts.

    Returns:
        The configuration.

    Raises:
        ValueError: A value is out of its range.
    """
    return TheoryConfig(
        Quadratic(**values["quadratic"]),
        Multiplicative(**values["multiplicative"]),
        MonteCarlo(**values["monte_carlo"]),
        values["parts"],
    )


def compute(config: TheoryConfig) -> Results:
    """Compute the parts that the configuration asks for, with a progress bar on a terminal.

    Args:
        config: What to compute.

    Returns:
        Figures and tables.
    """
    results = Results()
    steps = [step for part in config.parts for step in _steps(part, config, results)]
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("", total=len(steps))
        for description, step in steps:
            progress.update(task, description=description)
            step()
            progress.advance(task)
    return results


def write(results: Results, config: TheoryConfig, output: Path, command: str) -> None:
    """Write every panel as SVG and CSV, every table as CSV, the configuration, and the page.

    Args:
        results: Figures and tables.
        config: What was computed.
        output: The folder, made if need be.
        command: The command line, for the page.
    """
    output.mkdir(parents=True, exist_ok=True)
    drawings = {panel.name: draw.svg(panel) for figure in results.figures for panel in figure.panels}
    for name, drawing in drawings.items():
        (output / f"{name}.svg").write_text(drawing, encoding="utf-8")
    for panel in (panel for figure in results.figures for panel in figure.panels):
        panel.write_csv(output)
    for table in results.tables:
        table.write_csv(output)
    plain = asdict(config)
    plain["quadratic"]["annealing"] = list(config.quadratic.annealing)
    resolved = yaml.safe_dump(plain, sort_keys=False)
    (output / "config.yaml").write_text(resolved, encoding="utf-8")
    page.write_page(
        output / "index.html",
        results.figures,
        drawings,
        results.tables,
        findings(results.tables),
        command=command,
        config=resolved,
        version=__version__,
    )


def _steps(part: str, config: TheoryConfig, results: Results) -> list[tuple[str, Callable[[], None]]]:
    """What to do for one part, cut small enough for a progress bar that moves."""
    figures, tables = results.figures, results.tables
    if part == "steady-state":
        return [
            ("Noise floors", lambda: figures.append(steady_state.figure(config))),
            ("Noise floors, table", lambda: tables.append(steady_state.table(config))),
        ]
    if part == "minibatches":
        return [("Learning curves", lambda: figures.append(learning_curves.figure(config)))]
    if part == "start":
        return [
            ("When to start", lambda: figures.append(start.figure(config))),
            ("Equal minibatches", lambda: tables.append(start.equal_minibatches(config))),
            ("One direction", lambda: tables.append(start.one_direction(config))),
        ]
    if part == "multiplicative":
        panels: list[Panel] = []
        simulated: dict[int, multiplicative.Simulations] = {}

        def simulate(members: int) -> None:
            simulated[members] = multiplicative.simulations(config, members)

        return [
            *((f"Simulating K = {members}", partial(simulate, members)) for members in config.quadratic.members),
            ("Multiplicative: starts", lambda: panels.append(multiplicative.starts(config, simulated))),
            ("Multiplicative: drift", lambda: panels.append(multiplicative.drift(config))),
            ("Multiplicative: figure", lambda: figures.append(multiplicative.figure(panels))),
            ("Multiplicative: table", lambda: tables.append(multiplicative.table(config, simulated))),
        ]
    tuned: dict[int, list[annealing.Tuned]] = {}

    def tune(budget: int) -> None:
        tuned[budget] = annealing.tuned(config, budget)

    budgets = sorted(config.quadratic.tuned_budgets)
    largest = budgets[-1]
    return [
        *((f"Tuned at N = {budget}", partial(tune, budget)) for budget in budgets),
        ("Against annealed SGD", lambda: figures.append(annealing.figure(config, tuned))),
        ("Every method tuned", lambda: tables.append(annealing.table(config, largest, tuned[largest]))),
    ]


def _for_terminal(table: Table) -> TerminalTable:
    shown = TerminalTable(title=table.title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in table.header:
        shown.add_column(name, justify="left" if name == table.header[0] else "right")
    for row in table.printed():
        shown.add_row(*row)
    return shown
