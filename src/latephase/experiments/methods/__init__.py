"""The methods to compare. A method is one file here that says what it changes; writing the file adds it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import TypeVar

from latephase.experiments.config import Recipe
from latephase.experiments.errors import unknown
from latephase.experiments.methods.method import Method, Predictions, Reading
from latephase.experiments.methods.plain import Plain

__all__ = [
    "METHODS",
    "READINGS",
    "Method",
    "Predictions",
    "Reading",
    "label_of",
    "method_names",
    "parse_method",
    "summary_of",
]

# Summaries speak of SGD, which most recipes have.
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW"}

Kind = TypeVar("Kind", Method, Reading)


def _named(kind: type[Kind]) -> dict[str, type[Kind]]:
    """Every class of a kind that this package's files define and give a name."""
    found: dict[str, type[Kind]] = {}
    for file in sorted(pkgutil.iter_modules(__path__), key=lambda file: file.name):
        module = importlib.import_module(f"{__name__}.{file.name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found |= {v.name: v for v in own if issubclass(v, kind) and "name" in vars(v)}
    return found


#: Every way to train, by name.
METHODS: dict[str, type[Method]] = {Plain.name: Plain, **_named(Method)}
#: Every way to read another model off a trajectory, by name.
READINGS: dict[str, type[Reading]] = _named(Reading)


def method_names() -> list[str]:
    """Every method that can be asked for.

    Returns:
        The ways to train, the readings alone (`swa` is plain training read by SWA), and each combination
        (`late-phase+swa`). What predicts as an ensemble has no one trajectory of weights to be read.
    """
    others = [name for name in METHODS if name != Plain.name]
    combined = [
        f"{method}+{reading}"
        for reading in READINGS
        for method in others
        if not READINGS[reading].only and not METHODS[method].ensemble
    ]
    return [Plain.name, *READINGS, *others, *combined]


def parse_method(name: str) -> tuple[type[Method], type[Reading] | None]:
    """Take a method's name apart into the training and the reading.

    Args:
        name: Such as `base`, `swa` (which is plain training, read by SWA) or `late-phase+swa`.

    Returns:
        The way to train, and the way to read the model off or None for its last weights.

    Raises:
        ExperimentError: If there is no such method; the nearest ones are named.

    Example:
        >>> [part.__name__ for part in parse_method("late-phase+swa")]
        ['LatePhase', 'SWA']
    """
    if name not in method_names():
        raise unknown("method", name, method_names())
    if name in READINGS:
        return METHODS[READINGS[name].reads], READINGS[name]
    training, _, reading = name.partition("+")
    return METHODS[training], READINGS[reading] if reading else None


def label_of(name: str) -> str:
    """What a method is called in tables and figures.

    Args:
        name: A method's name.

    Returns:
        Its label, such as `late-phase + SWA`.
    """
    training, reading = parse_method(name)
    if reading is None:
        return training.label
    return reading.label if training.name == reading.reads else f"{training.label} + {reading.label}"


def summary_of(name: str, recipe: Recipe) -> str:
    """What a method does, in one line.

    Args:
        name: A method's name.
        recipe: Where K comes from.

    Returns:
        The line.
    """
    training, reading = parse_method(name)
    read = "" if reading is None else reading.summary_for(recipe)
    text = training.summary if reading is None else f"{training.summary}; {read}"
    if reading is not None and reading.only:
        text = read
    text = re.sub(r"\bSGD\b", _OPTIMIZERS.get(recipe.training.optimizer, "SGD"), text)
    return re.sub(r"\bK\b", str(recipe.late_phase.members), text)
