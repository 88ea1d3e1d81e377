"""`latephase tune`: a grid of settings for every method alike, judged on validation data alone."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from latephase.experiments.checkpoints import write_text
from latephase.experiments.command_line import help_is_asked, option_parser, parse_known, print_usage
from latephase.experiments.config import Recipe
from latephase.experiments.console import results_console
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.recipe import load_recipe, recipe_names
from latephase.experiments.report.numbers import SCORES, duration, mean
from latephase.experiments.study import compare
from latephase.experiments.tasks import TEXT, metrics_of

_USAGE = (
    "latephase tune RECIPE --grid KEY=VALUE,VALUE,... [--grid ...] [--metric NAME] [--output FOLDER] [--workers N] "
    "[--section.key VALUE ...]"
)


def main(arguments: list[str]) -> int:
    """Train every method of a recipe at every point of a grid, and name the best point of each method.

    The test data play no part in the choice and their scores are not shown.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument, the recipe or a file is not what it should be.
    """
    options, overrides = _options(arguments)
    console = results_console()
    if options is None:
        print_usage(console, _USAGE)
        return 0
    recipes = grid_recipes(options.recipe, options.grid, overrides)
    known = metrics_of(next(iter(recipes.values())))
    metric = options.metric or known[0]
    if metric not in known:
        raise unknown("metric", metric, known)
    folder = options.output or Path("runs") / f"tune-{Path(options.recipe).stem}"
    command = shlex.join(["latephase", "tune", *arguments])
    results = compare(recipes, folder, command=command, workers=options.workers)
    tuned = choose(results, metric)
    write_text(folder / "tune.json", json.dumps(tuned, indent=1) + "\n")
    console.print(_table(tuned))
    console.print(Text(f"{duration(results['seconds'])} on {results['device']}"))
    console.print(Text(f"validation scores: {folder / 'tune.json'}", style="bold"), soft_wrap=True)
    return 0


def grid_recipes(name: str, grid: Sequence[str], overrides: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of all points of a grid.

    Args:
        name: The recipe to vary.
        grid: For each varied key `KEY=VALUE,VALUE,...`.
        overrides: Options that hold at every point.

    Returns:
        The recipes by the name of their point.

    Raises:
        ExperimentError: If a grid is not one, or the recipe has no validation images to choose by.

    Example:
        >>> list(grid_recipes("digits-noisy", ["training.lr=0.1,0.2", "late_phase.members=5"], []))
        ['training.lr=0.1 late_phase.members=5', 'training.lr=0.2 late_phase.members=5']
    """
    axes = []
    for axis in grid:
        key, _, values = axis.partition("=")
        if not key or not all(values.split(",")):
            raise ExperimentError(f"--grid {axis} is not valid; it takes KEY=VALUE,VALUE,...")
        axes.append([(key, value) for value in values.split(",")])
    recipes = {}
    for point in itertools.product(*axes):
        own = [f"--{key}={value}" for key, value in point]
        recipe = load_recipe(name, [*overrides, *own])
        if not recipe.data.validation and recipe.data.name != TEXT:
            raise ExperimentError(f"recipe {name} has data.validation = 0: there are no images to choose by")
        recipes[" ".join(f"{key}={value}" for key, value in point)] = recipe
    return recipes


def choose(results: dict[str, Any], metric: str) -> dict[str, Any]:
    """Take the validation scores out of a study, and the best point of every method.

    Args:
        results: The content of results.json of a study with one setting for each point.
        metric: The score that decides: the highest accuracy, or the lowest of another one.

    Returns:
        Provenance, and for each method its scores at every point and the name of the best one.
    """
    sign = 1.0 if SCORES[metric].more else -1.0
    points = {setting["name"]: setting["methods"] for setting in results["settings"]}
    methods = {}
    for method, values in next(iter(points.values())).items():
        scores = {point: at[method]["validation"] for point, at in points.items()}
        best = max(scores, key=lambda point: sign * scores[point][metric]["mean"])
        methods[method] = {"label": values["label"], "best": best, "validation": scores}
    provenance = {key: results[key] for key in ("command", "commit", "date", "device", "seconds", "versions")}
    return {
        **provenance,
        "metric": metric,
        "seeds": results["settings"][0]["seeds"],
        "methods": methods,
    }


def _table(tuned: dict[str, Any]) -> Table:
    """A row for each method and point; the method's best point stands out."""
    score = SCORES[tuned["metric"]]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method", no_wrap=True)
    table.add_column("point")
    table.add_column(f"validation {score.name}{', ' + score.unit if score.unit else ''}", justify="right", no_wrap=True)
    for values in tuned["methods"].values():
        for i, (point, scores) in enumerate(values["validation"].items()):
            best = point == values["best"]
            text = mean(scores[tuned["metric"]], tuned["metric"])
            table.add_row(
                values["label"] if i == 0 else "", point, f"{text} {'<' if best else ' '}", style="bold" if best else ""
            )
    return table


def _options(arguments: list[str]) -> tuple[argparse.Namespace | None, list[str]]:
    if help_is_asked(arguments):
        return None, []
    if not arguments or arguments[0].startswith("-"):
        raise ExperimentError(f"latephase tune needs a recipe first; there are {', '.join(recipe_names())}")
    parser = option_parser()
    parser.add_argument("recipe")
    parser.add_argument("--grid", action="append", default=[])
    parser.add_argument("--metric")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int)
    options, rest = parse_known(parser, arguments)
    if not options.grid:
        raise ExperimentError("latephase tune needs at least one --grid KEY=VALUE,VALUE,...")
    return options, rest
