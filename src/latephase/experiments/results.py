"""results.json: every number of a study, with the command, the commit and the machine they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latephase.experiments.checksums import damaged
from latephase.experiments.config import Recipe
from latephase.experiments.device import describe_device, pick_device
from latephase.experiments.errors import ExperimentError
from latephase.experiments.json_file import read_json, write_json
from latephase.experiments.methods import METHODS, label_of, parse_method, summary_of
from latephase.experiments.metrics_file import read_records
from latephase.experiments.origin import commit, versions
from latephase.experiments.plan import Leg
from latephase.experiments.statistics import paired_difference, summarise

# What a method is set against, where the study has it.
_AGAINST = ("base", "swa")
_FAMILY = "late-phase-"
_CONTROLS = ("twin", "lr-over-k", "k-batch", "decay-over-k", "deep-ensemble")


@dataclass(frozen=True)
class Setting:
    """One recipe in a study.

    Attributes:
        name: The recipe's name.
        recipe: The recipe.
        methods: The methods asked for.
        seeds: The seeds.
        folder: Where its runs are.
        legs: What has to be trained.
        total: Minibatches of the whole training.
        sizes: Number of `classes` and of `train`, `validation` and `test` images or characters.
        metrics: Names of the scores, the one that matters first.
        kind: What one sample is called, `images` or `characters`.
    """

    name: str
    recipe: Recipe
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    legs: list[Leg]
    total: int
    sizes: dict[str, int]
    metrics: tuple[str, ...]
    kind: str


def gather(
    kind: str, settings: Sequence[Setting], *, command: str, workers: int, trained: int, seconds: float
) -> dict[str, Any]:
    """Collect the results of all runs and set the methods against each other.

    Args:
        kind: `train` or `compare`.
        settings: The settings, all their legs done.
        command: The command line.
        workers: Number of processes.
        trained: Number of legs trained by this command.
        seconds: Its wall time.

    Returns:
        Plain values for JSON.
    """
    return {
        "kind": kind,
        "command": command,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": describe_device(pick_device(settings[0].recipe.compute.device)),
        "workers": workers,
        "seconds": seconds,
        "training_seconds": sum(_training_seconds(setting) for setting in settings),
        "legs": {"trained_now": trained, "all": sum(len(setting.legs) for setting in settings)},
        "versions": versions(),
        "settings": [_gather_setting(setting) for setting in settings],
    }


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results.json.

    Args:
        path: The file.
        results: What `gather` returned.

    Raises:
        ExperimentError: If it cannot be written.
    """
    write_json(path, results)


def read_result(path: Path) -> dict[str, Any]:
    """Read the result.json of a run.

    Args:
        path: The file; where SHA256SUMS stands beside it, it must be as that says.

    Returns:
        Its content.

    Raises:
        ExperimentError: If it cannot be read, or is not what was written.
    """
    if path.is_file() and path in damaged(path.parent):
        raise ExperimentError(f"{path} is not what was written; run the command again, which makes it again")
    return read_json(path, "remove it to evaluate that run again")


def _gather_setting(setting: Setting) -> dict[str, Any]:
    runs = {method: [_run(setting, method, seed) for seed in setting.seeds] for method in setting.methods}
    shared = sum(leg.until for leg in setting.legs if not leg.outputs)
    cost = {leg.training: METHODS[leg.training](setting.recipe).cost for leg in setting.legs}
    own = sum((leg.until - leg.begin) * cost[leg.training] for leg in setting.legs if leg.outputs)
    return {
        "name": setting.name,
        "title": setting.recipe.title or setting.name,
        "recipe": dataclasses.asdict(setting.recipe),
        "metrics": list(setting.metrics),
        "kind": setting.kind,
        setting.kind: setting.sizes,
        "seeds": list(setting.seeds),
        "minibatches": {
            "each_run": setting.total,
            "trained": shared + own,
            "without_sharing": setting.total
            * len(setting.seeds)
            * sum(cost[parse_method(method)[0].name] for method in setting.methods),
        },
        "methods": {
            method: {
                "label": label_of(method),
                "summary": summary_of(method, setting.recipe),
                "training": parse_method(method)[0].label,
                "reads": parse_method(method)[0].name,
                "start": runs[method][0]["start"],
                "started": _started([run["started"] for run in runs[method]]),
                "cost": runs[method][0]["cost"],
                **_scores(runs, method, setting.metrics),
                "curve": _curve(setting, method),
                "reliability": _add(run["reliability"] for run in runs[method]),
                "disagreement": _mean_matrix([run["disagreement"] for run in runs[method]]),
                "seconds": {
                    part: summarise([run["seconds"][part] for run in runs[method]])
                    for part in ("shared", "own", "evaluation")
                },
                "per_second": _per_second(setting, runs, method),
                "sample": next((run["sample"] for run in runs[method] if run.get("sample")), None),
            }
            for method in setting.methods
        },
        "contrasts": _contrasts(runs, setting.metrics[0]),
    }


def _started(steps: list[int | None]) -> dict[str, Any] | None:
    """When the members came to life, in minibatches."""
    known = [float(step) for step in steps if step is not None]
    return dict(summarise(known)) if known else None


def _per_second(setting: Setting, runs: dict[str, list[dict[str, Any]]], method: str) -> dict[str, Any] | None:
    """Samples trained on in a second of the training that is the method's own, evaluations on the way included."""
    recipe = setting.recipe
    each = recipe.training.batch_size * (recipe.text.length if setting.kind == "characters" else 1)
    cost = METHODS[parse_method(method)[0].name](recipe).cost
    legs = [_leg(setting, method, seed) for seed in setting.seeds]
    seconds = [run["seconds"]["own"] for run in runs[method]]
    if any(leg.begin == leg.until for leg in legs) or not all(seconds):
        return None
    return dict(
        summarise([(leg.until - leg.begin) * cost * each / taken for leg, taken in zip(legs, seconds, strict=True)])
    )


def _training_seconds(setting: Setting) -> float:
    """Seconds of all training and evaluation, the shared part counted once."""
    shared: dict[int, float] = {}
    total = 0.0
    for leg in setting.legs:
        for i, (method, _) in enumerate(leg.outputs):
            seconds = _run(setting, method, leg.seed)["seconds"]
            total += seconds["evaluation"] + (seconds["own"] if i == 0 else 0.0)
            shared[leg.seed] = max(shared.get(leg.seed, 0.0), seconds["shared"])
    return total + sum(shared.values())


def _scores(runs: dict[str, list[dict[str, Any]]], method: str, metrics: Sequence[str]) -> dict[str, Any]:
    ours = runs[method]
    parts = {part: _summaries(ours, part, metrics) for part in ("test", "validation", "ensemble", "member_mean")}
    return {
        **parts,
        "by_seed": {metric: [run["test"][metric] for run in ours] for metric in metrics},
        "against": {
            other: {metric: _paired(ours, runs[other], metric) for metric in metrics}
            for other in _AGAINST
            if other in runs and other != method
        },
    }


def _summaries(runs: list[dict[str, Any]], part: str, metrics: Sequence[str]) -> dict[str, Any] | None:
    if any(run[part] is None for run in runs):
        return None
    return {metric: summarise([run[part][metric] for run in runs]) for metric in metrics}


def _paired(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return dict(paired_difference([r["test"][metric] for r in ours], [r["test"][metric] for r in theirs]))


def _contrasts(runs: dict[str, list[dict[str, Any]]], metric: str) -> list[dict[str, Any]]:
    """Late-phase training against the controls that have its step count or its annealing but not its members.

    Where it is not among the methods, its families are in its place. A family that adds weights is set against the
    method of its own name, which has these weights and no members.
    """
    families = [name for name in runs if name.startswith(_FAMILY)]
    late = [name for name in families if "+" not in name] if "late-phase" not in runs else ["late-phase"]
    pairs = [(ours, control) for ours in late for control in _CONTROLS]
    pairs += [(ours, ours.removeprefix(_FAMILY)) for ours in families]
    return [
        {"method": ours, "control": control, **_paired(runs[ours], runs[control], metric)}
        for ours, control in pairs
        if ours in runs and control in runs
    ]


def _curve(setting: Setting, method: str) -> dict[str, list[float]]:
    """Mean over seeds of the held-out scores of every epoch that has them, the shared part included."""
    training = parse_method(method)[0].name
    curves = []
    for seed in setting.seeds:
        legs = [leg for leg in setting.legs if leg.seed == seed]
        own = next(leg for leg in legs if leg.outputs and leg.training == training)
        # A training that was once alone, or forked earlier, has records of its own for what is shared now.
        records = [r for r in read_records(own.folder / "metrics.jsonl", own.until) if r["step"] > own.begin]
        if own.after is not None:
            shared = next(leg for leg in legs if not leg.outputs)
            records = [r for r in read_records(shared.folder / "metrics.jsonl") if r["step"] <= own.begin] + records
        curves.append({record["epoch"]: record for record in records if setting.metrics[0] in record})
    # What a damaged file has lost of one seed is left out of the mean.
    columns = [[curve[epoch] for curve in curves] for epoch in curves[0] if all(epoch in curve for curve in curves)]
    return {
        "epoch": [column[0]["epoch"] for column in columns],
        **{
            key: [sum(record[key] for record in column) / len(column) for column in columns]
            for key in ("loss", setting.metrics[0], "nll")
        },
    }


def _leg(setting: Setting, method: str, seed: int) -> Leg:
    return next(leg for leg in setting.legs if leg.seed == seed and method in dict(leg.outputs))


def _run(setting: Setting, method: str, seed: int) -> dict[str, Any]:
    return read_result(dict(_leg(setting, method, seed).outputs)[method] / "result.json")


def _add(parts: Any) -> dict[str, list[float]]:
    parts = list(parts)
    return {key: [sum(values) for values in zip(*(p[key] for p in parts), strict=True)] for key in parts[0]}


def _mean_matrix(matrices: list[list[list[float]] | None]) -> list[list[float]] | None:
    there = [m for m in matrices if m is not None]
    if not there:
        return None
    rows = zip(*there, strict=True)
    return [[sum(cell) / len(there) for cell in zip(*row, strict=True)] for row in rows]
