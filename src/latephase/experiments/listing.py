"""`latephase recipes`: what there is, what it costs, and what a recipe resolves to."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latephase.experiments.command_line import help_is_asked, option_parser, parse_known, print_usage
from latephase.experiments.config import Recipe
from latephase.experiments.console import results_console
from latephase.experiments.cost import Cost, Speed, cost_of, measure, parameters_of, quantity
from latephase.experiments.device import describe_device, pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.recipe import load_recipe, recipe_names, scaled, to_yaml
from latephase.experiments.report.numbers import duration
from latephase.experiments.samples import Characters, samples_of

_USAGE = "latephase recipes [RECIPE] [--measure] [--scale FACTOR] [--section.key VALUE ...]"
_WIDE = 110


def main(arguments: list[str]) -> int:
    """List the recipes with their cost, or show one of them with everything that it inherits.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument or the recipe is not what it should be.
    """
    console = results_console()
    if help_is_asked(arguments):
        print_usage(console, _USAGE)
        return 0
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    options, overrides = _options(arguments if name is None else arguments[1:])
    if name is not None:
        return _show(console, scaled(load_recipe(name, overrides), options.scale), options.measure)
    if overrides:
        raise ExperimentError(f"latephase recipes takes {overrides[0]} only after the name of a recipe")
    recipes = {name: scaled(load_recipe(name), options.scale) for name in recipe_names()}
    costs = {name: cost_of(recipe) for name, recipe in recipes.items()}
    speeds = _measured(console, recipes) if options.measure else None
    console.print(_table(recipes, costs, speeds, console.width))
    for line in _legend(speeds):
        console.print(Text(line), style="dim")
    return 0


def _show(console: Console, recipe: Recipe, measured: bool) -> int:
    """The resolved recipe; what it costs stands in comments, so that the whole is a recipe again."""
    cost, samples = cost_of(recipe), samples_of(recipe)
    many, one_of = samples.kind
    size = f"{cost.batch_size}"
    if isinstance(samples, Characters):
        size = f"{recipe.training.batch_size} \u00d7 {samples.length}"
    runs = f"{len(recipe.methods)} methods, {recipe.seeds} seeds"
    lines = [
        f"{cost.minibatches:,} minibatches of {size} out of {samples.train:,} {many}",
        f"{quantity(cost.flops_per_sample)}FLOP for forward and backward of one {one_of}",
        f"one run {quantity(cost.flops)}FLOP; {runs} {quantity(cost.all_flops)}FLOP, what they share counted once",
    ]
    if isinstance(samples, Characters):
        lines.insert(1, f"{parameters_of(recipe):,} parameters for {samples.vocabulary} distinct characters")
    if measured:
        speed = measure(recipe)
        one, every = _hours(cost, speed)
        lines.append(f"one run {one}, all of them {every} in one process on {_device(recipe)}")
        lines.append(f"(from {speed.steps} steps of {speed.batch_size} {many}; loading and evaluation not included)")
    console.print(Text(to_yaml(recipe) + "\n".join(f"# {line}" for line in lines)), soft_wrap=True)
    return 0


def _measured(console: Console, recipes: dict[str, Recipe]) -> dict[str, Speed]:
    """Ten seconds for each different model and kind of data."""
    speeds: dict[object, Speed] = {}
    found = {}
    with console.status("") as status:
        for name, recipe in recipes.items():
            network = (recipe.model.name, recipe.model.width, recipe.model.depth)
            samples = dataclasses.replace(samples_of(recipe), train=0)
            key = (network, samples, recipe.training.batch_size, recipe.training.optimizer, recipe.compute)
            if key not in speeds:
                status.update(f"measuring {name}, ten seconds")
                speeds[key] = measure(recipe)
            found[name] = speeds[key]
    return found


def _table(recipes: dict[str, Recipe], costs: dict[str, Cost], speeds: dict[str, Speed] | None, width: int) -> Table:
    # A name is never shortened, nor a number; what there is room for beside them depends on the width.
    wide = width >= _WIDE
    described = wide or speeds is None
    heads = ["recipe", *(["setting" if wide else "model"] if described else [])]
    heads += ["epochs", "minibatches", "FLOP run", "all", *([] if speeds is None else ["time run", "all"])]
    rows = []
    for name, recipe in recipes.items():
        cost = costs[name]
        row = [name]
        if described:
            row.append(recipe.title if wide else recipe.model.name.removeprefix("torchvision:"))
        row += [str(recipe.training.epochs), f"{cost.minibatches:,}"]
        row += [quantity(cost.flops), quantity(cost.all_flops)]
        if speeds is not None:
            row += _hours(cost, speeds[name])
        rows.append(row)
    taken = [max(map(len, column)) + 1 for column in zip(heads, *rows, strict=True)]
    room = width - sum(taken) + taken[1]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i <= described else "right", no_wrap=True)
    for row in rows:
        cells = [Text(cell) for cell in row]
        if described:
            cells[1].truncate(max(1, room - 1), overflow="ellipsis")
        table.add_row(*cells)
    return table


def _legend(speeds: dict[str, Speed] | None) -> list[str]:
    lines = [
        "FLOP: forward and backward of all minibatches of one run, a multiply-add counted as two; all: every method "
        "and seed, what they share counted once, evaluation not included. latephase recipes NAME shows one of them.",
    ]
    if speeds is not None:
        lines.append(
            "Time: estimated from ten seconds of training each, one process on "
            f"{describe_device(pick_device('auto'))}; loading and evaluation not included."
        )
    return lines


def _hours(cost: Cost, speed: Speed) -> tuple[str, str]:
    """The time of one run and of all."""
    each = speed.seconds_per_sample * cost.batch_size
    return _time(cost.minibatches * each), _time(cost.all_minibatches * each)


def _time(seconds: float) -> str:
    hours = seconds / 3600
    return duration(seconds) if hours < 1 else f"{hours:,.{0 if hours >= 100 else 1}f} h"


def _device(recipe: Recipe) -> str:
    return describe_device(pick_device(recipe.compute.device))


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = option_parser()
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--scale", type=float)
    return parse_known(parser, arguments)
