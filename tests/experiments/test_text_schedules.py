"""Warm-up, cosine, and warm-up, plateau and decay; and what a recipe may not ask of an optimizer."""

import math
from pathlib import Path

import pytest
import yaml

from latephase.experiments.config import Recipe, Training
from latephase.experiments.errors import ExperimentError
from latephase.experiments.recipe import identity, load_recipe, recipe_from_dict
from latephase.experiments.run_folder import claim
from latephase.experiments.schedule import learning_rate

NEW = ("optimizer", "betas", "clip", "schedule", "warmup")


def test_half_a_cosine() -> None:
    training = Training(lr=2.0, schedule="cosine", final_lr=0.1)
    for i in range(101):
        expected = 0.2 + 1.8 * (1 + math.cos(math.pi * i / 100)) / 2
        assert learning_rate(training, i / 100) == pytest.approx(expected, rel=1e-12)


def test_warm_up_plateau_and_decay() -> None:
    training = Training(lr=4.0, schedule="wsd", warmup=0.1, constant_until=0.6, linear_until=0.7, final_lr=0.0)
    rates = [learning_rate(training, f) for f in (0.0, 0.025, 0.05, 0.1, 0.3, 0.599, 0.6, 0.8, 0.9, 1.0)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_the_warm_up_rises_linearly_and_joins_without_a_jump(schedule: str) -> None:
    training = Training(lr=3.0, schedule=schedule, warmup=0.2)
    assert [learning_rate(training, f) for f in (0.0, 0.05, 0.1)] == pytest.approx([0.0, 0.75, 1.5])
    assert learning_rate(training, 0.2) == 3.0
    assert learning_rate(training, 0.2 - 1e-9) == pytest.approx(3.0)


def test_a_recipe_from_before_there_were_optimizers_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("digits-noisy")
    claim(tmp_path / "run", recipe)
    path = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(path.read_text())
    for key in NEW:
        del values["training"][key]
    assert identity(recipe_from_dict(values)) == identity(recipe)
    path.write_text(yaml.safe_dump(values))
    assert claim(tmp_path / "run", recipe)


def test_the_new_fields_are_part_of_what_a_recipe_is() -> None:
    assert {f"training.{key}" for key in NEW} <= set(identity(Recipe()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optimizer=lion"], "training.optimizer = lion is not valid; it takes sgd, adam or adamw"),
        (["betas=[0.9]"], r"training.betas = \[0.9\] is not valid; it takes two numbers from 0 to below 1"),
        (["betas=[0.9,1]"], "it takes two numbers from 0 to below 1"),
        (["clip=0"], "training.clip = 0.0 is not valid; it takes null or a number above 0"),
        (["schedule=step"], "training.schedule = step is not valid; it takes linear, cosine, wsd"),
        (["warmup=1"], "training.warmup = 1.0 is not valid; it takes a fraction from 0 to below 1"),
        (["warmup=0.6"], "it takes at most training.constant_until = 0.5"),
        (["schedule=wsd", "lr_drops=[0.5]"], r"training.lr_drops = \[0.5\] is not valid; it takes \[\] where"),
    ],
)
def test_what_no_training_can_have_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        load_recipe("digits-noisy", [f"--training.{option}" for option in options])


def test_a_recipe_for_text_is_read() -> None:
    options = ["optimizer=adamw", "betas=[0.9,0.95]", "clip=1", "schedule=cosine", "warmup=0.02", "linear_until=0.1"]
    training = load_recipe("digits-noisy", [f"--training.{option}" for option in options]).training
    assert (training.optimizer, training.betas, training.clip) == ("adamw", [0.9, 0.95], 1.0)
    assert (training.schedule, training.warmup) == ("cosine", 0.02)
