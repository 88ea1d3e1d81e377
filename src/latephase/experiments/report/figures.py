"""The figures of a setting, each drawn from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latephase.evaluation import bins_of_sums
from latephase.experiments.report.diagrams import Reliability, disagreement, reliability
from latephase.experiments.report.document import Figure
from latephase.experiments.report.looks import group_of, looks_of
from latephase.experiments.report.numbers import SCORES, Score, has_members, labelled
from latephase.experiments.report.plots import Dot, Series, curves, dots
from latephase.experiments.report.sentences import capital
from latephase.experiments.report.wording import wording


def differences_range(settings: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """The range of all intervals, so that several settings can be drawn to one scale.

    Args:
        settings: Settings of results.json.

    Returns:
        The two ends; None if there is no interval, or the settings have different scores.
    """
    first = {wording(setting).main for setting in settings}
    if len(first) > 1:
        return None
    metric = first.pop()
    factor = SCORES[metric].factor
    methods = [method["against"] for setting in settings for method in setting["methods"].values()]
    paired = [against["base"][metric] for against in methods if "base" in against]
    ends = [factor * p[end] for p in paired for end in ("low", "high") if p[end] is not None]
    if not ends:
        return None
    room = 0.06 * (max(*ends, 0.0) - min(*ends, 0.0))
    return min(*ends, 0.0) - room, max(*ends, 0.0) + room


def differences_figure(setting: dict[str, Any], name: str, limits: tuple[float, float] | None = None) -> Figure | None:
    """Each method's paired difference to plain training in the score that matters, with its 95% interval.

    Args:
        setting: A setting of results.json.
        name: Name of the figure.
        limits: Ends of the axis; None fits it to this setting.

    Returns:
        The figure; None without `base` or with a single seed.
    """
    looks, words = looks_of(setting["methods"]), wording(setting)
    score, plain = words.score, words.plain
    rows = []
    for method, look in looks.items():
        values = setting["methods"][method]
        paired = values["against"].get("base", {}).get(words.main)
        if paired is None:
            continue
        if paired["low"] is None:
            return None
        middle, low, high = (score.factor * paired[key] for key in ("mean", "low", "high"))
        rows.append(Dot(labelled(values), middle, low, high, look, group_of(method)))
    if not rows:
        return None
    return dots(
        name,
        f"{capital(score.name)}, set against {plain}",
        f"Test {score.name} minus {plain}'s, seed by seed.{_lower(score)} Bars: 95% intervals; one clear of the line "
        "is rarely chance.",
        rows,
        axis=f"{score.name} minus {plain}{_unit(score)}",
        decimals=score.decimals,
        zero=True,
        limits=limits,
        interval="95%, paired by seed",
    )


def contrasts_figure(setting: dict[str, Any], name: str) -> Figure | None:
    """Late-phase training minus each of its controls, with 95% intervals.

    Args:
        setting: A setting of results.json.
        name: Name of the figure.

    Returns:
        The figure; None without controls or with a single seed.
    """
    contrasts = [c for c in setting["contrasts"] if c["low"] is not None]
    if not contrasts:
        return None
    methods, looks, score = setting["methods"], looks_of(setting["methods"]), wording(setting).score
    several = len({c["method"] for c in contrasts}) > 1
    rows = []
    for c in contrasts:
        ours = f"{methods[c['method']]['label']} " if several else ""
        middle, low, high = (score.factor * c[key] for key in ("mean", "low", "high"))
        rows.append(Dot(f"{ours}\u2212 {methods[c['control']]['label']}", middle, low, high, looks[c["control"]]))
    return dots(
        name,
        "Late-phase, set against its controls",
        f"Test {score.name} of late-phase training minus that of each control, seed by seed.{_lower(score)} Bars: 95% "
        "intervals.",
        rows,
        axis=f"difference in {score.name}{_unit(score)}",
        decimals=score.decimals,
        zero=True,
        interval="95%, paired by seed",
    )


def scores_figure(setting: dict[str, Any], metric: str, name: str) -> Figure:
    """A score by method, with standard errors over seeds.

    Args:
        setting: A setting of results.json.
        metric: Which score.
        name: Name of the figure.

    Returns:
        The figure.
    """
    score, words = SCORES[metric], wording(setting)
    factor = score.factor
    rows = []
    for method, look in looks_of(setting["methods"]).items():
        values = setting["methods"][method]
        summary = values["test"][metric]
        middle, error = factor * summary["mean"], summary["se"]
        low, high = (None, None) if error is None else (middle - factor * error, middle + factor * error)
        ensemble = factor * values["ensemble"][metric]["mean"] if has_members(values) else None
        rows.append(Dot(labelled(values), middle, low, high, look, group_of(method), ensemble))
    barred = any(row.bar is not None for row in rows)
    better = "Higher" if score.more else "Lower"
    note = " Upright bar: the ensemble of the members' predictions." if barred else ""
    spread = " Bars: ± one standard error over seeds." if len(setting["seeds"]) > 1 else ""
    return dots(
        name,
        capital(score.name),
        f"On the test {words.held_out}, mean over seeds.{spread} {better} is better.{note}",
        rows,
        axis=f"test {score.name}, {score.unit}".rstrip(", "),
        decimals=min(score.decimals, 3),
        interval="mean ± standard error",
        bar="members' ensemble" if barred else "",
    )


def curves_figure(setting: dict[str, Any], name: str) -> Figure:
    """Held-out error, or bits per character, over training, mean over seeds, with T0 marked.

    Args:
        setting: A setting of results.json.
        name: Name of the figure.

    Returns:
        The figure.
    """
    recipe, words = setting["recipe"], wording(setting)
    epochs = recipe["training"]["epochs"]
    accuracy = words.main == "accuracy"
    what, unit, least = ("error", ", %", 0.5) if accuracy else (words.score.name, "", 0.01)
    # Readings such as SWA have no curve of their own: their trajectory is another method's.
    drawn: dict[str, dict[str, Any]] = {}
    for values in setting["methods"].values():
        drawn.setdefault(values["reads"], values)
    series: list[Series] = []
    seen: list[float] = []
    for training, look in looks_of(drawn).items():
        values = drawn[training]
        x = values["curve"]["epoch"]
        scores = values["curve"][words.main]
        errors = [100 * (1 - score) for score in scores] if accuracy else scores
        # The first epochs are far above all others; the axis is for what comes after them.
        seen += [e for at, e in zip(x, errors, strict=True) if epochs <= 10 or at > 0.1 * epochs] or errors
        series.append(Series(values["training"], x, errors, look, group_of(training)))
    room = 0.08 * max(max(seen) - min(seen), least)
    t0 = _start(setting, drawn)
    held_out = "validation" if setting[words.samples]["validation"] else "test"
    return curves(
        name,
        "Learning curves",
        f"{capital(what)} on the {held_out} {words.held_out}, mean over seeds; late-phase training is the averaged "
        "model. Up to T0 the methods are one and the same training.",
        series,
        x="epoch",
        y=f"{held_out} {what}{unit}",
        limits=(max(0.0, min(seen) - room), max(seen) + room),
        line_at=(t0 * epochs, "T0") if t0 else None,
    )


def _start(setting: dict[str, Any], methods: dict[str, dict[str, Any]]) -> float | None:
    """T0 as a fraction of training; where a signal found it, the mean over seeds."""
    start = setting["recipe"]["late_phase"]["start"]
    if isinstance(start, str):
        found = [m["started"]["mean"] for m in methods.values() if m["started"]]
        return found[0] / setting["minibatches"]["each_run"] if found else None
    return start if any(m["start"] for m in methods.values()) else None


def reliability_figure(setting: dict[str, Any], name: str) -> Figure:
    """Accuracy against confidence in 15 bins, all seeds together.

    Args:
        setting: A setting of results.json.
        name: Name of the figure.

    Returns:
        The figure.
    """
    methods = setting["methods"]
    panels = [
        Reliability(methods[method]["label"], bins_of_sums(**methods[method]["reliability"]), look)
        for method, look in looks_of(methods).items()
    ]
    note = "All seeds together." if len(setting["seeds"]) > 1 else ""
    return reliability(name, "Reliability", panels, note)


def agreement_figure(setting: dict[str, Any], name: str) -> Figure | None:
    """How often two members predict different classes.

    Args:
        setting: A setting of results.json.
        name: Name of the figure.

    Returns:
        The figure; None if no method has at least two members.
    """
    ordered = [setting["methods"][method] for method in looks_of(setting["methods"])]
    late = [m for m in ordered if m["disagreement"] and len(m["disagreement"]) > 1]
    if not late:
        return None
    # Of several methods with members, late-phase training comes first in its group.
    chosen = next((m for m in late if m["label"] == "late-phase"), late[0])
    words = wording(setting)
    count = len(chosen["disagreement"])
    return disagreement(
        name,
        "How often two members disagree",
        f"{chosen['label']}: percent of the test {words.samples} on which two of the {count} members predict different "
        f"{'characters' if words.samples == 'characters' else 'classes'}.",
        chosen["disagreement"],
    )


def _unit(score: Score) -> str:
    return f", {score.gap}" if score.gap and score.gap != score.name else ""


def _lower(score: Score) -> str:
    """For a score of which less is more, which a reader of differences must be told."""
    return "" if score.more else " Below zero is better."
