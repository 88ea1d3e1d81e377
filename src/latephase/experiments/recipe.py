"""Recipes: YAML files that inherit from one another, with overrides from the command line."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from latephase.experiments.config import Recipe
from latephase.experiments.errors import ExperimentError, unknown
from latephase.experiments.recipe_file import read_yaml, sealed
from latephase.experiments.schedule import SCHEDULES

# What a recipe may change without changing the numbers of any one run.
_FREE = ("title", "method", "methods", "seed", "seeds", "checkpoint_minutes")
_FREE_KEYS = ("data.decode_threads", "data.images", "data.classes", "text.bytes", "text.distinct")


def recipe_names() -> list[str]:
    """The recipes that the package ships.

    Returns:
        Their names, sorted; `load_recipe` takes each of them.
    """
    folder = resources.files("latephase.experiments") / "recipes"
    return sorted(entry.name[: -len(".yaml")] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_parser(command: str) -> ArgumentParser:
    """The command line of everything that takes a recipe: one option for each field of a recipe.

    Args:
        command: Name of the command, for its help.

    Returns:
        The parser, which raises `ArgumentError` instead of ending the process.
    """
    parser = ArgumentParser(prog=f"latephase {command}", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Recipe)
    return parser


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, everything it inherits from, and the overrides on top.

    Args:
        name: A shipped recipe's name, or the path of a YAML file.
        overrides: Command-line options such as `["--late_phase.members", "5"]`.

    Returns:
        The resolved recipe.

    Raises:
        ExperimentError: If the recipe does not exist, or a key or a value is not one.

    Example:
        >>> load_recipe("digits-noisy", ["--seed", "3"]).data.label_noise
        0.2
    """
    parser = _parser()
    try:
        chosen = parser.parse_object(_inherited(name, ()))
    except (ArgumentError, TypeError) as error:
        raise _readable(error, f"recipe {name}: ") from error
    try:
        resolved = parser.parse_args(list(overrides), namespace=chosen)
    except ArgumentError as error:
        raise _readable(error, "" if overrides else f"recipe {name}: ") from error
    recipe = recipe_from_dict(resolved.as_dict())
    try:
        _check(recipe)
    except (ExperimentError, TypeError) as error:
        # A null where a number belongs; with options it may be theirs, and the message names the key.
        where = "" if overrides and isinstance(error, ExperimentError) else f"recipe {name}: "
        raise ExperimentError(f"{where}{error}") from error
    return recipe


def scaled(recipe: Recipe, factor: float | None) -> Recipe:
    """A shorter or longer recipe with all fractions of training kept.

    Args:
        recipe: The recipe.
        factor: What the epochs are multiplied by; None leaves everything as it is.

    Returns:
        The recipe with that many epochs, at least one, and learning curves of about as many points.

    Raises:
        ExperimentError: If the factor is not a positive number.

    Example:
        >>> scaled(load_recipe("digits-noisy"), 0.1).training.epochs
        8
    """
    if factor is None:
        return recipe
    if not 0 < factor < math.inf:
        raise ExperimentError(f"--scale {factor} is not valid; it takes a positive number, such as 0.1")
    training = dataclasses.replace(recipe.training, epochs=max(1, round(recipe.training.epochs * factor)))
    return dataclasses.replace(recipe, training=training, evaluate_every=max(1, round(recipe.evaluate_every * factor)))


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested plain values, as `dataclasses.asdict` takes it apart.

    Args:
        values: Fields, and for each section a mapping of its fields.

    Returns:
        The recipe.
    """
    sections = {f.name: type(getattr(Recipe(), f.name)) for f in dataclasses.fields(Recipe)}
    built = {key: sections[key](**v) if isinstance(v, Mapping) else v for key, v in values.items()}
    return Recipe(**built)


def identity(recipe: Recipe) -> dict[str, Any]:
    """What makes two recipes the same one: every field that changes the numbers of a run.

    Args:
        recipe: A resolved recipe.

    Returns:
        Dotted field names and their values; title, seeds, methods and the pace of checkpoints are left out.
    """
    plain = dataclasses.asdict(recipe)
    return {key: value for key, value in _flat(plain) if key.split(".")[0] not in _FREE and key not in _FREE_KEYS}


def to_yaml(recipe: Recipe) -> str:
    """Write a recipe as YAML that `load_recipe` reads back to the same recipe.

    Args:
        recipe: A resolved recipe.

    Returns:
        The text.
    """
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, width=100)


def to_file(recipe: Recipe) -> str:
    """Write a recipe as a run folder holds it; see `to_yaml`.

    Args:
        recipe: A resolved recipe.

    Returns:
        The YAML, with its checksum in a comment before it, which `load_recipe` and `read_resolved` check.
    """
    return sealed(to_yaml(recipe))


def read_resolved(path: Path) -> Recipe:
    """Read what `to_file` wrote.

    Args:
        path: The file.

    Returns:
        The recipe.

    Raises:
        ExperimentError: If it cannot be read, is damaged, or is not a resolved recipe.
    """
    values = read_yaml(path, str(path))
    try:
        return recipe_from_dict(values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ExperimentError(f"{path} is not a resolved recipe; choose another --output") from error


@lru_cache(maxsize=1)
def _parser() -> ArgumentParser:
    """Made once: it takes longer than reading a recipe, and nothing of a recipe stays in it."""
    return recipe_parser("train")


def _inherited(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's own keys over those of the recipe it inherits from, and so on."""
    if name in seen:
        raise ExperimentError(f"recipe {seen[0]} inherits from itself: {' -> '.join((*seen, name))}")
    own = _read(name)
    _check_keys(own, name)
    parent = own.pop("inherits", None)
    if parent is None:
        return own
    if not _is_file(parent) or Path(parent).is_absolute() or not _is_file(name):
        base = _inherited(parent, (*seen, name))
    else:
        base = _inherited(str(Path(name).parent / parent), (*seen, name))
    return _over(base, own)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _read(name: str) -> dict[str, Any]:
    if _is_file(name):
        return read_yaml(Path(name), name)
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    with resources.as_file(resources.files("latephase.experiments") / "recipes" / f"{name}.yaml") as path:
        return read_yaml(path, name)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _over(merged[key], value) if nested else value
    return merged


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys() -> list[str]:
    return [key for key, _ in _flat(dataclasses.asdict(Recipe()))]


def _check_keys(values: Mapping[str, Any], name: str) -> None:
    known = _keys()
    sections = {key.split(".")[0] for key in known if "." in key}
    for key, value in values.items():
        if key in sections and not isinstance(value, Mapping):
            raise ExperimentError(f"recipe {name}: {key} must be a section of keys, not {value!r}")
    for key, _ in _flat(values):
        if key not in known and key not in ("inherits", *sections):
            raise unknown(f"key in recipe {name}:", key, known)


def _readable(error: Exception, where: str) -> ExperimentError:
    """One line for what jsonargparse says in several."""
    text = str(error)
    if found := re.search(r"unrecognized arguments: (.+)", text, re.IGNORECASE):
        option = found.group(1).split()[0]
        options = [f"--{key}" for key in _keys()]
        return unknown("option", option.split("=")[0], options)
    if found := re.search(r'key "([\w.]+)"', text):
        key = found.group(1)
        expected = " or ".join(dict.fromkeys(re.findall(r"Expected an? (?:<class ')?([\w\[\]]+)", text)))
        value = re.search(r"(?:Given value|Got value): (.*)", text)
        given = f" = {value.group(1)}" if value else ""
        return ExperimentError(f"{where}{key}{given} is not valid; it takes {expected.replace('NoneType', 'null')}")
    return ExperimentError(where + " ".join(text.split()))


def _check(recipe: Recipe) -> None:
    """Refuse values of the right type that no training can have."""
    flat = dict(_flat(dataclasses.asdict(recipe)))

    def need(key: str, holds: bool, what: str) -> None:
        if not holds:
            raise ExperimentError(f"{key} = {flat[key]} is not valid; it takes {what}")

    for key in ("training.epochs", "training.batch_size", "late_phase.members", "seeds", "evaluate_every"):
        need(key, flat[key] >= 1, "a whole number from 1")
    for key in ("compute.threads", "model.width", "model.depth", "ema.every", "lookahead.every", "dropout.passes"):
        need(key, flat[key] >= 1, "a whole number from 1")
    need("swa.every", recipe.swa.every is None or recipe.swa.every >= 1, "null or a whole number from 1")
    need("deep_ensemble.networks", recipe.deep_ensemble.networks >= 2, "a whole number from 2")
    sizes = ("subset", "test_images", "image_size", "decode_threads", "images", "classes")
    for key in (*(f"data.{size}" for size in sizes), "text.bytes", "text.distinct"):
        need(key, flat[key] is None or flat[key] >= 1, "null or a whole number from 1")
    data, training = recipe.data, recipe.training
    larger = data.resize is None or (data.image_size is not None and data.resize >= data.image_size)
    need("data.resize", larger, "null, or beside data.image_size at least as many pixels")
    need("data.resident", data.resident in (True, False, "auto"), "true, false or auto")
    either = not (data.resized_crop and data.crop_padding)
    need("data.crop_padding", either, "0 where data.resized_crop = true: an image is cropped once")
    need("data.padding", data.padding in ("zero", "reflect"), "zero or reflect")
    need("data.flip", data.flip in (True, False, "alternate"), "true, false or alternate")
    need("model.weights", not (recipe.model.weights and recipe.model.pretrained), "null where model.pretrained is set")
    for key in ("data.validation", "data.crop_padding", "data.cutout", "seed"):
        need(key, flat[key] >= 0, "a whole number from 0")
    fractions = ("training.constant_until", "training.linear_until", "swa.start")
    for key in (*fractions, "data.label_noise"):
        need(key, 0 <= flat[key] <= 1, "a fraction from 0 to 1")
    start = recipe.late_phase.start
    need(
        "late_phase.start",
        start == "auto" if isinstance(start, str) else 0 <= start <= 1,
        "a fraction from 0 to 1, or auto",
    )
    for key in ("ema.decay", "dropout.rate"):
        need(key, 0 <= flat[key] < 1, "a fraction from 0 to below 1")
    need("lookahead.rate", 0 < recipe.lookahead.rate <= 1, "a fraction above 0, at most 1")
    need("swa.start", recipe.swa.start < 1, "a fraction below 1, for there would be nothing to average")
    need(
        "training.linear_until",
        training.schedule != "linear" or training.linear_until >= training.constant_until,
        f"a fraction from training.constant_until = {training.constant_until} to 1",
    )
    need("training.optimizer", training.optimizer in ("sgd", "adam", "adamw"), "sgd, adam or adamw")
    rates = len(training.betas) == 2 and all(0 <= beta < 1 for beta in training.betas)
    need("training.betas", rates, "two numbers from 0 to below 1")
    need("training.clip", training.clip is None or training.clip > 0, "null or a number above 0")
    need("training.schedule", training.schedule in SCHEDULES, ", ".join(SCHEDULES))
    latest = 1.0 if training.schedule == "cosine" else training.constant_until
    need("training.warmup", 0 <= training.warmup < 1, "a fraction from 0 to below 1")
    need("training.warmup", training.warmup <= latest, f"at most training.constant_until = {latest}")
    stepped = not training.lr_drops or training.schedule == "linear"
    need("training.lr_drops", stepped, f"[] where training.schedule = {training.schedule}")
    rising = sorted(training.lr_drops) == training.lr_drops and all(0 < drop < 1 for drop in training.lr_drops)
    need("training.lr_drops", rising, "rising fractions between 0 and 1")
    for key in ("lr", "momentum", "weight_decay", "final_lr", "drop_factor"):
        need(f"training.{key}", flat[f"training.{key}"] >= 0, "a number from 0")
    text = recipe.text
    need("text.length", text.length >= 2, "a whole number from 2")
    window = text.length if text.window is None else text.window
    need("text.window", window >= 2, "null or a whole number from 2")
    need("text.context", 0 <= text.context < window, f"a whole number from 0 to below the window, {window}")
    need("text.order", text.order in ("streams", "windows"), "streams or windows")
    need("text.state", text.state in ("shared", "own", "zero"), "shared, own or zero")
    need("late_phase.optimizer_state", recipe.late_phase.optimizer_state in ("copy", "reset"), "copy or reset")
    gamma = recipe.late_phase.base_gradient
    need("late_phase.base_gradient", not isinstance(gamma, str) or gamma in ("sum", "mean"), "sum, mean or a number")
    need("compute.precision", recipe.compute.precision in ("float32", "bfloat16"), "float32 or bfloat16")
