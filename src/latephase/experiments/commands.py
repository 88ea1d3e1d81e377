"""The commands that train recipes: compare, train and demo."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from latephase.experiments.command_line import help_is_asked, option_parser, parse_known
from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError
from latephase.experiments.recipe import load_recipe, recipe_names, recipe_parser, scaled
from latephase.experiments.report.terminal import print_results
from latephase.experiments.study import compare as compare_recipes
from latephase.experiments.study import train as train_recipe

_LONGEST = 200
_DEMO = ("digits-noisy", "digits-clean")


def compare(arguments: list[str]) -> int:
    """`latephase compare RECIPE [RECIPE ...]`: train every method over the seeds, print the table, write the report.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument, a recipe or a file is not what it should be.
    """
    return _compare("compare", *recipes_first("compare", arguments))


def demo(arguments: list[str]) -> int:
    """`latephase demo`: compare the methods on digits, with and without label noise.

    Args:
        arguments: What follows the command's name; the options of `compare`.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument or the run folder is not what it should be.
    """
    return _compare("demo", list(_DEMO), arguments, output=Path("runs/demo"))


def train(arguments: list[str]) -> int:
    """`latephase train RECIPE`: train one method with one seed, print its scores, write the report.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit code.

    Raises:
        ExperimentError: If an argument, the recipe or a file is not what it should be.
    """
    names, rest = recipes_first("train", arguments)
    if _help_is_asked("train", "RECIPE", rest):
        return 0
    if len(names) > 1:
        raise ExperimentError(f"latephase train takes one recipe, not {len(names)}: {' '.join(names)}")
    options, overrides = _own_options(rest)
    recipe = scaled(load_recipe(names[0], overrides), options.scale)
    name = setting_name(names[0], options.scale)
    folder = options.output or Path("runs") / f"{name}-{recipe.method}-seed{recipe.seed}"
    results = train_recipe(name, recipe, folder, command=_command("train", arguments))
    if results:
        print_results(results, folder)
    return 0


def _compare(command: str, names: list[str], rest: list[str], output: Path | None = None) -> int:
    if _help_is_asked(command, "" if command == "demo" else "RECIPE [RECIPE ...]", rest):
        return 0
    options, overrides = _own_options(rest)
    chosen: dict[str, Recipe] = {
        setting_name(name, options.scale): scaled(load_recipe(name, overrides), options.scale) for name in names
    }
    folder = options.output or output or Path("runs") / "-and-".join(chosen)
    given = rest if command == "demo" else [*names, *rest]
    results = compare_recipes(chosen, folder, command=_command(command, given), workers=options.workers)
    if results:
        print_results(results, folder)
    return 0


def recipes_first(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Tell the recipes, which stand before the first option, from the options.

    Args:
        command: The command's name.
        arguments: What follows it.

    Returns:
        The recipes, and the rest.

    Raises:
        ExperimentError: If there is no recipe.
    """
    end = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    if not end and not help_is_asked(arguments):
        raise ExperimentError(f"latephase {command} needs a recipe first; there are {', '.join(recipe_names())}")
    return arguments[:end], arguments[end:]


def _own_options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that are not fields of a recipe; the others are left for the recipe."""
    parser = option_parser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--scale", type=float)
    options, rest = parse_known(parser, arguments)
    if options.workers is not None and options.workers < 1:
        raise ExperimentError(f"--workers {options.workers} is not valid; it takes a whole number from 1")
    return options, rest


def _help_is_asked(command: str, recipe: str, arguments: Sequence[str]) -> bool:
    if not help_is_asked(arguments):
        return False
    parser = recipe_parser(command)
    own = "[--output FOLDER] [--workers N] [--scale FACTOR]"
    parser.usage = f"latephase {command} {recipe} {own} [--section.key VALUE ...]"
    parser.add_argument("--output", metavar="FOLDER", help="run folder; one that was begun is finished")
    parser.add_argument("--workers", metavar="N", help="number of processes; by default as many as there are cores")
    parser.add_argument("--scale", metavar="FACTOR", help="multiply the epochs; all fractions of training are kept")
    parser.print_help()
    return True


def setting_name(recipe: str, scale: float | None) -> str:
    """What a recipe is called in a run folder.

    Args:
        recipe: Its name or its file.
        scale: The factor on its epochs, if there is one.

    Returns:
        The name, which is also that of a folder.

    Raises:
        ExperimentError: If no folder can have it.
    """
    name = Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
    if not name.strip(".") or not name.isprintable() or len(name.encode()) > _LONGEST:
        raise ExperimentError(
            f"recipe {ascii(recipe)[:80]}: its folder could not be named {ascii(name)[:80]}; rename it"
        )
    return name if scale is None else f"{name}-x{scale:g}"


def _command(command: str, arguments: Sequence[str]) -> str:
    return shlex.join(["latephase", command, *arguments])
