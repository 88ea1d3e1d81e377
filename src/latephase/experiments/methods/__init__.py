"""The methods to compare. To add one, write a file that says what it changes and put its class into a list here."""

from __future__ import annotations

import re

from latephase.experiments.config import Recipe
from latephase.experiments.errors import unknown
from latephase.experiments.methods.k_batch import KBatch
from latephase.experiments.methods.late_phase import LatePhase, LatePhaseFromStart
from latephase.experiments.methods.lr_over_k import LearningRateOverK
from latephase.experiments.methods.method import Method, Reading
from latephase.experiments.methods.plain import Plain
from latephase.experiments.methods.swa import SWA
from latephase.experiments.methods.twin import Twin

__all__ = ["METHODS", "READINGS", "Method", "Reading", "label_of", "method_names", "parse_method", "summary_of"]

#: Every way to train, by name.
METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Plain, LatePhase, LatePhaseFromStart, Twin, KBatch, LearningRateOverK)
}
#: Every way to read another model off a trajectory, by name.
READINGS: dict[str, type[Reading]] = {reading.name: reading for reading in (SWA,)}


def method_names() -> list[str]:
    """Every method that can be asked for.

    Returns:
        The ways to train, the readings of plain training (`swa`), and each combination (`late-phase+swa`).
    """
    others = [name for name in METHODS if name != Plain.name]
    combined = [f"{method}+{reading}" for reading in READINGS for method in others]
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
        return Plain, READINGS[name]
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
    return reading.label if training is Plain else f"{training.label} + {reading.label}"


def summary_of(name: str, recipe: Recipe) -> str:
    """What a method does, in one line.

    Args:
        name: A method's name.
        recipe: Where K comes from.

    Returns:
        The line.
    """
    training, reading = parse_method(name)
    text = training.summary if reading is None else f"{training.summary}; {reading.summary}"
    return re.sub(r"\bK\b", str(recipe.late_phase.members), text)
