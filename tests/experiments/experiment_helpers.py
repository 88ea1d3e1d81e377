"""A recipe that trains in a second, and what the tests of the experiments share."""

from pathlib import Path
from typing import Any

import torch

from latephase.experiments.config import Recipe
from latephase.experiments.data import load_split
from latephase.experiments.legs import run_leg
from latephase.experiments.methods import METHODS, READINGS, parse_method
from latephase.experiments.plan import plan_seed
from latephase.experiments.recipe import load_recipe
from latephase.experiments.trajectory import Trajectory

TINY = {
    "data.subset": 48,
    "data.validation": 40,
    "data.test_images": 60,
    "training.epochs": 6,
    "training.batch_size": 6,
    "model.width": 4,
    "late_phase.members": 3,
    "evaluate_every": 1,
    "swa.start": 0.5,
    "ema.every": 4,
    "deep_ensemble.networks": 2,
    "dropout.passes": 3,
}
EVERY_TRAINING = list(METHODS)


def options(**changes: Any) -> list[str]:
    """The command-line overrides of the tiny recipe; `late_phase__members=2` is `--late_phase.members=2`."""
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--{key}={'null' if value is None else value}" for key, value in values.items()]


def tiny_recipe(**changes: Any) -> Recipe:
    return load_recipe("digits-noisy", options(**changes))


def trajectory(method: str, recipe: Recipe | None = None, seed: int = 0) -> Trajectory:
    recipe = recipe or tiny_recipe()
    training, reading = parse_method(method)
    readings = [READINGS[reading.name](recipe)] if reading else []
    return Trajectory(recipe, load_split(recipe.data, seed), seed, training(recipe), readings)


def run_seed(recipe: Recipe, methods: list[str], folder: Path, seed: int = 0) -> None:
    """Train the methods of one seed as a study does, in this process."""
    for leg in plan_seed(recipe, methods, seed, total_of(recipe), folder):
        run_leg(leg)


def total_of(recipe: Recipe) -> int:
    return recipe.training.epochs * (len(load_split(recipe.data, 0).train) // recipe.training.batch_size)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal bit for bit, through nested dicts and lists."""
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs
