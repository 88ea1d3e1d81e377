"""Everything that is measured of one setting's runs, seed by seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from latephase.evaluation.corruptions import CorruptionErrors
from latephase.experiments.errors import ExperimentError
from latephase.experiments.evaluate.corruption import Corruptions, open_corruptions, robustness, with_base
from latephase.experiments.evaluate.geometry import hessian, landscape
from latephase.experiments.evaluate.ood import detections
from latephase.experiments.evaluate.ood_sets import OodSet, open_set
from latephase.experiments.evaluate.options import OF_MEMBERS, Options
from latephase.experiments.evaluate.predictions import predictions
from latephase.experiments.evaluate.subject import Subject, load_subject
from latephase.experiments.evaluate.target import Group, Run, find_runs
from latephase.experiments.methods import label_of, parse_method, summary_of

# Called with what is done next and how many steps were finished.
OnProgress = Callable[[str, int], None]

BASE = "base"


def steps_of(group: Group, options: Options) -> int:
    """How many steps of progress the runs of a setting take.

    Args:
        group: The runs.
        options: What is measured.

    Returns:
        The number.
    """
    near = sum(run.seed in group.seeds[: options.geometry_seeds] for run in group.runs)
    geometry = options.flatness + len(options.landscape)
    return len(group.runs) * (1 + len(options.ood) + bool(options.corruptions)) + near * geometry


def measure(group: Group, options: Options, on_progress: OnProgress) -> dict[str, Any]:
    """Measure all runs of a setting.

    Args:
        group: The runs.
        options: What is measured.
        on_progress: Called as it proceeds.

    Returns:
        Plain values: the setting, and for each method its runs.

    Raises:
        LatePhaseError: If a file or a set is not what it should be.
    """
    _check_members(group, options)
    if options.relative_to is not None:
        find_runs(options.relative_to, ())
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in group.methods}
    costs: dict[str, int] = {}
    setting: dict[str, Any] = {}
    sets: list[OodSet] = []
    for seed in group.seeds:
        own = [run for run in group.runs if run.seed == seed]
        bases: dict[str, CorruptionErrors] = {}
        corruptions: Corruptions | None = None
        for run in _base_first(own):
            on_progress(f"{_label(run)}, seed {seed}", 0)
            subject = load_subject(run)
            setting = setting or _setting(group, subject)
            costs[run.method] = subject.trajectory.method.cost
            # What may be wrong with a file is found before anything is computed.
            sets = sets or _sets(subject, options)
            if options.corruptions:
                corruptions = corruptions or open_corruptions(subject.images.split.test, options)
            found = _measure_run(subject, options, sets, on_progress)
            if seed in group.seeds[: options.geometry_seeds]:
                found |= _geometry(subject, options, on_progress)
            if corruptions is not None:
                errors = robustness(subject, corruptions, options.severities)
                if options.relative_to is None and run.method == BASE:
                    bases = errors
                base = _base_of(subject, options, corruptions, bases)
                found["corruptions"] = {part: with_base(e, base) for part, e in errors.items()}
                setting["corruptions"] = {"source": corruptions.source, "note": corruptions.note}
                on_progress("", 1)
            runs[run.method].append(found)
    recipe = group.runs[0].recipe
    plain = group.runs[0].weights.suffix == ".safetensors"
    return {
        "name": group.name,
        **setting,
        "methods": {
            method: {
                "label": group.name if plain else label_of(method),
                "summary": "weights from a file" if plain else summary_of(method, recipe),
                "cost": costs[method],
                "runs": found,
            }
            for method, found in runs.items()
        },
    }


def _measure_run(subject: Subject, options: Options, sets: Sequence[OodSet], on_progress: OnProgress) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": subject.run.seed, "predictions": predictions(subject)}
    on_progress("", 1)
    found["ood"] = detections(subject, sets, lambda: on_progress("", 1)) if sets else None
    return found | {"corruptions": None, "flatness": None, "landscape": None}


def _geometry(subject: Subject, options: Options, on_progress: OnProgress) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if options.flatness:
        found["flatness"] = hessian(subject, options)
        on_progress("", 1)
    if options.landscape:
        found["landscape"] = landscape(subject, options, lambda: on_progress("", 1))
    return found


def _base_first(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.method != BASE)


def _label(run: Run) -> str:
    return run.weights.name if run.weights.suffix == ".safetensors" else label_of(run.method)


def _sets(subject: Subject, options: Options) -> list[OodSet]:
    split = subject.images.split
    sets = [open_set(text, split.train.shape, len(split.test), options.ood_images) for text in options.ood]
    names = [found.name for found in sets]
    if len(set(names)) < len(names):
        raise ExperimentError(f"--ood names two sets alike: {', '.join(names)}; rename a file or folder")
    return sets


def _base_of(
    subject: Subject, options: Options, corruptions: Corruptions, bases: dict[str, CorruptionErrors]
) -> CorruptionErrors | None:
    if options.relative_to is None:
        return bases.get("model")
    if "model" not in bases:
        bases["model"] = _relative_to(subject, options, corruptions)
    return bases["model"]


def _relative_to(subject: Subject, options: Options, corruptions: Corruptions) -> CorruptionErrors:
    """The errors of the run that was named as the base, on this seed's corrupted images."""
    assert options.relative_to is not None
    found = [run for group in find_runs(options.relative_to, ()) for run in group.runs]
    same = [run for run in found if run.seed == subject.run.seed] or found
    chosen = [run for run in same if run.method == BASE] or same
    if len(chosen) != 1:
        raise ExperimentError(f"--relative-to {options.relative_to} holds {len(found)} runs; name one of them")
    base = load_subject(chosen[0])
    ours, theirs = subject.images.split.train, base.images.split.train
    if (ours.shape, len(ours.classes)) != (theirs.shape, len(theirs.classes)):
        raise ExperimentError(
            f"--relative-to {options.relative_to} is of images {theirs.shape} in {len(theirs.classes)} classes; the "
            f"evaluated run is of {ours.shape} in {len(ours.classes)}"
        )
    return robustness(base, corruptions, options.severities)["model"]


def _check_members(group: Group, options: Options) -> None:
    """Refuse views of members that are asked for by name where no method has members."""
    asked = [view for view in options.landscape if view in OF_MEMBERS]
    if not asked or "perturbation" in options.landscape:
        return
    from latephase.experiments.methods.late_phase import LatePhase

    if not any(
        run.weights.suffix != ".safetensors"
        and issubclass(parse_method(run.method)[0], LatePhase)
        and parse_method(run.method)[1] is None
        for run in group.runs
    ):
        names = ", ".join(group.methods)
        raise ExperimentError(f"--landscape {' '.join(asked)} needs members, which {names} has none of")


def _setting(group: Group, subject: Subject) -> dict[str, Any]:
    split, recipe = subject.images.split, subject.run.recipe
    channels, height, width = split.train.shape
    return {
        "title": recipe.title or group.name,
        "recipe": dataclasses.asdict(recipe),
        "seeds": group.seeds,
        "images": {
            "classes": len(split.train.classes),
            "train": len(split.train),
            "validation": 0 if split.validation is None else len(split.validation),
            "test": len(split.test),
            "size": f"{width}x{height}",
            "channels": channels,
        },
        "corruptions": None,
    }
