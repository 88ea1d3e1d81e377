"""A study: settings x seeds x methods, trained, gathered and reported."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latephase.experiments.config import Recipe
from latephase.experiments.data import load_images, source_of
from latephase.experiments.device import pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import is_done
from latephase.experiments.methods import parse_method
from latephase.experiments.plan import Leg, plan_seed
from latephase.experiments.progress import StudyProgress
from latephase.experiments.results import Setting, gather, write_results
from latephase.experiments.run_folder import claim
from latephase.experiments.tasks import TEXT, load_data, make_task
from latephase.experiments.workers import default_workers, run_legs


def compare(recipes: dict[str, Recipe], folder: Path, *, command: str, workers: int | None = None) -> dict[str, Any]:
    """Train every method of every recipe over its seeds, or what is missing of it, and write the report.

    Args:
        recipes: The settings and their names.
        folder: The run folder; each setting gets a folder in it.
        command: The command line, for the results.
        workers: Number of processes; None takes as many as the cores have room for.

    Returns:
        The content of `results.json`.

    Raises:
        ExperimentError: If a recipe, a file or the folder is not what it should be.
    """
    if folder.exists() and not any((folder / name / "recipe.yaml").exists() for name in recipes):
        others = [path.parent.name for path in folder.glob("*/recipe.yaml")] if folder.is_dir() else []
        if others or not folder.is_dir() or any(folder.iterdir()):
            what = f"holds {', '.join(others)}" if others else "is not a run folder of latephase compare"
            raise ExperimentError(f"{folder} {what}; choose another --output")
    settings = [
        _setting(name, recipe, recipe.methods, _seeds(recipe), folder / name) for name, recipe in recipes.items()
    ]
    for setting in settings:
        claim(setting.folder, setting.recipe)
    return _carry_out("compare", settings, folder, command, workers)


def train(name: str, recipe: Recipe, folder: Path, *, command: str) -> dict[str, Any]:
    """Train one method with one seed, or what is missing of it, and write the report.

    Args:
        name: The recipe's name.
        recipe: The setting; `method` and `seed` say what is trained.
        folder: The run folder.
        command: The command line, for the results.

    Returns:
        The content of `results.json`.

    Raises:
        ExperimentError: If the recipe, a file or the folder is not what it should be.
    """
    setting = _setting(name, recipe, [recipe.method], [recipe.seed], folder)
    legs = [
        replace(leg, folder=folder, outputs=tuple((method, folder) for method, _ in leg.outputs))
        for leg in setting.legs
    ]
    claim(folder, recipe, run=("method", "seed"))
    return _carry_out("train", [replace(setting, legs=legs)], folder, command, workers=1)


def _setting(name: str, recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], folder: Path) -> Setting:
    """Check everything that can be checked before the first minibatch, and plan."""
    for method in methods:
        parse_method(method)
    if not methods:
        raise ExperimentError("methods = [] is not valid; it takes at least one method")
    task = make_task(recipe, load_data(recipe.data, seeds[0]), seeds[0], pick_device(recipe.compute.device))
    task.fresh_model(0)
    total = recipe.training.epochs * task.per_epoch
    legs = [leg for seed in seeds for leg in plan_seed(recipe, methods, seed, total, folder / f"seed-{seed}")]
    return Setting(name, recipe, tuple(methods), tuple(seeds), folder, legs, total, task.sizes, task.metrics, task.kind)


def _carry_out(
    kind: str, settings: Sequence[Setting], folder: Path, command: str, workers: int | None
) -> dict[str, Any]:
    begun = time.perf_counter()
    legs: list[Leg] = [leg for setting in settings for leg in setting.legs]
    missing = [leg for leg in legs if not is_done(leg) and _is_needed(leg, legs)]
    compute = settings[0].recipe.compute
    device = pick_device(compute.device)
    workers = workers or default_workers(compute, device.type)
    # Text is mapped from its file by every process; images are read once and handed over.
    sources = {source_of(setting.recipe.data) for setting in settings if setting.recipe.data.name != TEXT}
    with StudyProgress(settings, legs, missing) as progress:
        if missing:
            run_legs(missing, workers, [(data, load_images(data)) for data in sources], progress.advance)
    results = gather(
        kind,
        settings,
        command=command,
        workers=workers,
        trained=len(missing),
        seconds=time.perf_counter() - begun,
    )
    write_results(folder / "results.json", results)
    from latephase.experiments.report.page import write_report  # matplotlib takes its time to import

    write_report(folder / "results.json", folder / "report.html")
    return results


def _is_needed(leg: Leg, legs: Sequence[Leg]) -> bool:
    """Whether a leg has results to give, or a leg that does starts from it."""
    if leg.outputs:
        return True
    users = [other for other in legs if other.after is not None and other.after.parent == leg.folder]
    return any(not is_done(user) for user in users)


def _seeds(recipe: Recipe) -> list[int]:
    return list(range(recipe.seed, recipe.seed + recipe.seeds))
