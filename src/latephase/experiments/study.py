"""A study: settings x seeds x methods, trained, gathered and reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latephase.experiments.config import Data, Recipe
from latephase.experiments.data import load_images, source_of
from latephase.experiments.data_parallel import DataParallel, check_shares
from latephase.experiments.device import pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.legs import is_done, run_leg
from latephase.experiments.methods import parse_method
from latephase.experiments.plan import Leg, plan_seed
from latephase.experiments.progress import StudyProgress
from latephase.experiments.results import Setting, gather, write_results
from latephase.experiments.run_folder import claim
from latephase.experiments.tasks import TEXT, load_data, make_task
from latephase.experiments.team import Team, is_launched
from latephase.experiments.workers import default_workers, run_legs, share_legs
from latephase.whole_files import remove_leftovers


def compare(recipes: dict[str, Recipe], folder: Path, *, command: str, workers: int | None = None) -> dict[str, Any]:
    """Train every method of every recipe over its seeds, or what is missing of it, and write the report.

    Under torchrun the processes share the trainings out: each trains one at a time, alone.

    Args:
        recipes: The settings and their names.
        folder: The run folder; each setting gets a folder in it.
        command: The command line, for the results.
        workers: Number of processes; None takes as many as the cores have room for.

    Returns:
        The content of `results.json`; nothing of it in the processes of a team but the first.

    Raises:
        ExperimentError: If a recipe, a file or the folder is not what it should be.
    """
    team = Team() if is_launched() else None
    if team is not None and workers is not None:
        raise ExperimentError(
            f"--workers {workers}: the {team.world} processes that torchrun has started are the workers; leave it out"
        )
    settings = _once(team, "claim", lambda: claim_all(recipes, folder))
    if settings is None:
        settings = plan_all(recipes, folder)
    return _carry_out("compare", settings, folder, command, workers, team)


def claim_all(recipes: dict[str, Recipe], folder: Path) -> list[Setting]:
    """Check everything that can be checked before the first minibatch, and make the run folder.

    Args:
        recipes: The settings and their names.
        folder: The run folder.

    Returns:
        What is to be trained.

    Raises:
        ExperimentError: If a recipe, a file or the folder is not what it should be.
    """
    if folder.exists() and not any((folder / name / "recipe.yaml").exists() for name in recipes):
        others = [path.parent.name for path in folder.glob("*/recipe.yaml")] if folder.is_dir() else []
        if others or not folder.is_dir() or not all(_is_begun(entry, recipes) for entry in folder.iterdir()):
            what = f"holds {', '.join(others)}" if others else "is not a run folder of latephase compare"
            raise ExperimentError(f"{folder} {what}; choose another --output")
    settings = plan_all(recipes, folder)
    for setting in settings:
        claim(setting.folder, setting.recipe)
    return settings


def _is_begun(entry: Path, recipes: dict[str, Recipe]) -> bool:
    """Whether something is the folder of a setting in which a killed process has not yet written the recipe."""
    if entry.name not in recipes or not entry.is_dir():
        return False
    remove_leftovers(entry)
    return not any(entry.iterdir())


def plan_all(recipes: dict[str, Recipe], folder: Path) -> list[Setting]:
    """Check everything that can be checked before the first minibatch, and plan; nothing is written.

    Args:
        recipes: The settings and their names.
        folder: The run folder.

    Returns:
        What is to be trained.

    Raises:
        ExperimentError: If a recipe is not what it should be.
    """
    return [_setting(name, recipe, recipe.methods, _seeds(recipe), folder / name) for name, recipe in recipes.items()]


def _once(team: Team | None, key: str, do: Callable[[], Any]) -> Any:
    """Do something in this process, or, before all go on, in the first of a team; None in the others."""
    if team is None:
        return do()
    done = []
    team.agree(key, lambda: done.append(do()))
    return done[0] if done else None


def train(name: str, recipe: Recipe, folder: Path, *, command: str) -> dict[str, Any]:
    """Train one method with one seed, or what is missing of it, and write the report.

    Under torchrun the processes train it together, each on its share of every minibatch.

    Args:
        name: The recipe's name.
        recipe: The setting; `method` and `seed` say what is trained.
        folder: The run folder.
        command: The command line, for the results.

    Returns:
        The content of `results.json`; nothing of it in the processes of a team but the first.

    Raises:
        ExperimentError: If the recipe, a file or the folder is not what it should be.
    """
    team = Team() if is_launched() else None
    if team is not None:
        check_shares(recipe, parse_method(recipe.method)[0], team.world)
    setting = _setting(name, recipe, [recipe.method], [recipe.seed], folder)
    legs = [
        replace(leg, folder=folder, outputs=tuple((method, folder) for method, _ in leg.outputs))
        for leg in setting.legs
    ]
    _once(team, "claim", lambda: claim(folder, recipe, run=("method", "seed")))
    return _carry_out("train", [replace(setting, legs=legs)], folder, command, 1, team)


def train_seed(name: str, recipe: Recipe, seed: int, folder: Path) -> int:
    """Train what is missing of one seed of a setting in this process; `compare` writes the report when all is there.

    Args:
        name: The setting's name.
        recipe: The setting.
        seed: The seed.
        folder: The setting's folder.

    Returns:
        How many trajectories were trained.

    Raises:
        ExperimentError: If the recipe or a file is not what it should be.
    """
    legs = _setting(name, recipe, recipe.methods, [seed], folder).legs
    missing = unfinished(legs)
    run_legs([legs[i] for i in missing], 1, [], lambda *_: None)
    return len(missing)


def _sources(recipes: Iterable[Recipe]) -> list[tuple[Data, Any]]:
    """The images of some recipes, read once and handed over; text is mapped from its file by every process."""
    return [(data, load_images(data)) for data in {source_of(r.data) for r in recipes if r.data.name != TEXT}]


def unfinished(legs: Sequence[Leg]) -> list[int]:
    """What is still to be trained.

    Args:
        legs: All that a study trains.

    Returns:
        Indices of those that are not done and that something needs.
    """
    return [i for i, leg in enumerate(legs) if not is_done(leg) and _is_needed(leg, legs)]


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
    kind: str, settings: Sequence[Setting], folder: Path, command: str, workers: int | None, team: Team | None
) -> dict[str, Any]:
    begun = time.perf_counter()
    legs: list[Leg] = [leg for setting in settings for leg in setting.legs]
    numbers = unfinished(legs)
    if team is not None:
        numbers = team.agree("missing", lambda: numbers)
    missing = [legs[i] for i in numbers]
    compute = settings[0].recipe.compute
    device = pick_device(compute.device)
    workers = team.world if team is not None else workers or default_workers(compute, device.type)
    with StudyProgress(settings, legs, missing if team is None else []) as progress:
        if team is not None:
            _together(kind, legs, numbers, team, device.type)
        elif missing:
            run_legs(missing, workers, _sources(setting.recipe for setting in settings), progress.advance)
    if team is not None and not team.leads:
        return {}
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


def _together(kind: str, legs: Sequence[Leg], missing: Sequence[int], team: Team, device_type: str) -> None:
    """Train in all processes of a team: what is compared apart, a single training together."""
    if kind == "compare":
        share_legs(legs, missing, team)
        return
    team.start_group(device_type)
    try:
        for i in missing:
            run_leg(legs[i], parallel=DataParallel(team))
    finally:
        team.end_group()
    team.meet("left")


def _is_needed(leg: Leg, legs: Sequence[Leg]) -> bool:
    """Whether a leg has results to give, or a leg that does starts from it."""
    if leg.outputs:
        return True
    users = [other for other in legs if other.after is not None and other.after.parent == leg.folder]
    return any(not is_done(user) for user in users)


def _seeds(recipe: Recipe) -> list[int]:
    return list(range(recipe.seed, recipe.seed + recipe.seeds))
