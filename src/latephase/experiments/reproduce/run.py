"""Run the rows of a table, or what is missing of them, and set them beside the published numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latephase.experiments.config import Recipe
from latephase.experiments.cost import cost_of
from latephase.experiments.data import load_images
from latephase.experiments.device import describe_device, pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.methods import METHODS, method_names, parse_method
from latephase.experiments.origin import commit, versions
from latephase.experiments.recipe import load_recipe, scaled
from latephase.experiments.report.numbers import SCORES
from latephase.experiments.reproduce.deviations import deviations
from latephase.experiments.reproduce.tables import PaperTable, Row
from latephase.experiments.samples import samples_of
from latephase.experiments.study import compare
from latephase.experiments.tasks import TEXT
from latephase.experiments.text import load_corpus

OnTable = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        table: The rows.
        overrides: Options of a recipe, for all rows.
        model: Another network for all rows, or None.
        scale: Factor on the epochs, or None.
        seeds: Number of seeds, or None for the recipes' own.
    """

    table: PaperTable
    overrides: Sequence[str] = ()
    model: str | None = None
    scale: float | None = None
    seeds: int | None = None

    def recipe(self, name: str) -> Recipe:
        """A row's recipe as it is to be run, with the methods of all rows that have it."""
        own = [] if self.model is None else [f"--model.name={self.model}"]
        recipe = scaled(load_recipe(name, [*own, *self.overrides]), self.scale)
        methods = [row.method for row in self.table.rows if row.recipe == name and row.method in method_names()]
        seeds = recipe.seeds if self.seeds is None else self.seeds
        return dataclasses.replace(recipe, methods=methods, seeds=seeds)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Every recipe that is needed, once."""
        return {name: self.recipe(name) for name in dict.fromkeys(row.recipe for row in self.table.rows)}


def reproduce(
    request: Request, folder: Path, *, command: str, workers: int | None = None, on_table: OnTable | None = None
) -> dict[str, Any]:
    """Run the rows of a table.

    Each recipe is a run folder of `latephase compare` inside the table's, so what is done is never done again.

    Args:
        request: The rows and what is changed about them.
        folder: Where the run folders go.
        command: The command line, for the results.
        workers: Number of processes; None takes as many as the cores have room for.
        on_table: Called with the table each time that a recipe is finished, so that an interruption leaves one.

    Returns:
        The table.

    Raises:
        ExperimentError: If nothing of it can be run, or a run fails.
    """
    recipes = request.recipes
    missing = {name: why for name, recipe in recipes.items() if (why := _missing(recipe)) is not None}
    if len(missing) == len(recipes):
        raise ExperimentError(f"no row of {request.table.name} can be run: {next(iter(missing.values()))}")
    results: dict[str, dict[str, Any]] = {}
    for name, recipe in recipes.items():
        if name in missing or not recipe.methods:
            continue
        results[name] = compare({name: recipe}, folder / name, command=command, workers=workers)
        if on_table is not None and len(results) + len(missing) < len(recipes):
            on_table(_table(request, recipes, results, missing, command))
    return _table(request, recipes, results, missing, command)


def plan(request: Request, *, command: str) -> dict[str, Any]:
    """What running the rows of a table would cost; nothing is run, read or downloaded.

    Args:
        request: The rows and what is changed about them.
        command: The command line.

    Returns:
        The table without results.
    """
    return _table(request, request.recipes, {}, {}, command, read=False)


def _table(
    request: Request,
    recipes: dict[str, Recipe],
    results: dict[str, dict[str, Any]],
    missing: dict[str, str],
    command: str,
    *,
    read: bool = True,
) -> dict[str, Any]:
    device = next(iter(recipes.values())).compute.device
    changed = {
        name: deviations(recipe, load_recipe(name), read=read and name in results) for name, recipe in recipes.items()
    }
    everywhere = [d for d in next(iter(changed.values())) if all(d in those for those in changed.values())]
    own = {name: [d for d in those if d not in everywhere] for name, those in changed.items()}
    return {
        "table": request.table.name,
        "title": request.table.title,
        "metric": request.table.metric,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": describe_device(pick_device(device)),
        "versions": versions(),
        "deviations": everywhere,
        "own_deviations": {name: those for name, those in own.items() if those},
        "rows": [
            _row(row, request.table.metric, recipes[row.recipe], results.get(row.recipe), missing.get(row.recipe))
            for row in request.table.rows
        ],
    }


def _row(row: Row, metric: str, recipe: Recipe, results: dict[str, Any] | None, missing: str | None) -> dict[str, Any]:
    known = row.method in method_names()
    cost = cost_of(recipe, [row.method]) if known else None
    found: dict[str, Any] = {
        "row": row.name,
        "label": row.label,
        "recipe": row.recipe,
        "method": row.method,
        "published": {"value": row.value, "sd": row.sd, "se": row.se, "n": row.n, "note": row.note},
        "ours": None,
        "difference": None,
        "seeds": recipe.seeds,
        "cost": {
            "times": METHODS[parse_method(row.method)[0].name](recipe).cost if known else None,
            "minibatches": None if cost is None else cost.all_minibatches,
            "flops": None if cost is None else cost.all_flops,
            "seconds": None,
        },
        "problem": missing if known else f"there is no method {row.method}",
        "run": None,
    }
    if results is None or not known:
        return found
    method = results["settings"][0]["methods"][row.method]
    score, factor = method["test"][metric], SCORES[metric].factor
    mean, se = factor * score["mean"], None if score["se"] is None else factor * score["se"]
    found["ours"] = {
        "value": mean,
        "se": se,
        "n": score["n"],
        "by_seed": [factor * value for value in method["by_seed"][metric]],
    }
    if row.value is not None:
        both = None if se is None or row.se is None else math.hypot(se, row.se)
        found["difference"] = {"mean": mean - row.value, "se": both}
    # What it would have taken alone: its own training and what it shares with others.
    seconds = sum(method["seconds"][part]["mean"] for part in ("shared", "own", "evaluation"))
    found["cost"]["seconds"] = seconds * score["n"]
    found["run"] = {key: results[key] for key in ("commit", "date", "device", "versions")}
    return found


def _missing(recipe: Recipe) -> str | None:
    """Why a recipe cannot be run here: files or weights that are not to be had."""
    try:
        if recipe.data.name == TEXT:
            load_corpus(recipe.data.train)
        else:
            load_images(recipe.data)
        if recipe.model.pretrained or recipe.model.weights:
            samples_of(recipe).build(recipe.model)
    except ExperimentError as error:
        return str(error)
    return None
