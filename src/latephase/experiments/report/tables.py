"""The tables of a setting, of text that is made from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latephase.experiments.report.document import Table
from latephase.experiments.report.looks import group_of, in_groups
from latephase.experiments.report.numbers import (
    MINUS,
    SCORES,
    difference,
    duration,
    has_members,
    labelled,
    mean,
    number,
)
from latephase.experiments.report.wording import wording


def results_table(setting: dict[str, Any]) -> Table:
    """Every method's scores and its differences to base and SWA.

    Args:
        setting: A setting of results.json.

    Returns:
        The table.
    """
    methods, words = setting["methods"], wording(setting)
    first, *others = words.metrics
    if words.samples == "characters":
        # Differences of bits are long, and this is the table that must fit a page; Brier scores stand in the others.
        others = [metric for metric in others if metric != "brier"]
    against = [other for other in ("base", "swa") if any(other in m["against"] for m in methods.values())]
    unit = ", points" if words.score.gap == "points" else ""
    minus = [f"{MINUS} {methods[other]['label']}{unit}" for other in against]
    rows = []
    for name in in_groups(methods):
        values = methods[name]
        cells = [labelled(values), mean(values["test"][first], first)]
        cells += [_difference(values["against"].get(other, {}).get(first), first) for other in against]
        cells += [mean(values["test"][metric], metric) for metric in others]
        rows.append(cells)
    several = len(setting["seeds"]) > 1
    units = (
        "NLL in nats, Brier 0 to 2, both lower is better. "
        if "nll" in others
        else "Of all scores but accuracy lower is better. "
    )
    note = (
        f"Mean ± standard error over seeds. {units}"
        f"{'In brackets 95% intervals of differences paired by seed; a star: it excludes zero. ' if against else ''}"
        if several
        else units
    )
    heads = ["method", words.score.head, *minus, *_heads(others)]
    return _table("Test scores", heads, rows, setting, note)


def other_differences_table(setting: dict[str, Any]) -> Table | None:
    """The differences in the scores that do not matter first, such as calibration and Brier score.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None if there is nothing to compare with.
    """
    others = wording(setting).metrics[1:]
    rows = [
        [f"{values['label']} {MINUS} {setting['methods'][other]['label']}"]
        + [_difference(paired[metric], metric) for metric in others]
        for values in setting["methods"].values()
        for other, paired in values["against"].items()
    ]
    heads = ["difference", *(SCORES[metric].gap_head for metric in others)]
    return _table("Differences in the other scores", heads, rows, setting, folded=True) if rows else None


def contrasts_table(setting: dict[str, Any]) -> Table | None:
    """Late-phase training against its controls.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None without controls.
    """
    methods, words = setting["methods"], wording(setting)
    rows = [
        [f"{methods[c['method']]['label']} {MINUS} {methods[c['control']]['label']}", _difference(c, words.main)]
        for c in setting["contrasts"]
    ]
    heads = ["difference", words.score.gap_head]
    return _table("Late-phase against its controls", heads, rows, setting) if rows else None


def members_table(setting: dict[str, Any]) -> Table | None:
    """The averaged model beside the members' ensemble and the mean member.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None if no method has members.
    """
    rows, metrics = [], wording(setting).metrics
    for values in setting["methods"].values():
        if not has_members(values):
            continue
        label = values["label"]
        named = [
            (f"{label}: the model", values["test"]),
            (f"{label}: ensemble of the members' predictions", values["ensemble"]),
            (f"{label}: mean member", values["member_mean"]),
        ]
        rows += [[name, *(mean(s[metric], metric) for metric in metrics)] for name, s in named if s is not None]
    return _table("The model and its members", ["model", *_heads(metrics)], rows, setting) if rows else None


def cost_table(setting: dict[str, Any]) -> Table:
    """Wall time of each method, the shared part apart.

    Args:
        setting: A setting of results.json.

    Returns:
        The table.
    """
    each = setting["minibatches"]["each_run"]
    rows = [
        [values["label"]]
        + [duration(values["seconds"][part]["mean"]) for part in ("shared", "own", "evaluation")]
        + [f"{each * values.get('cost', 1):,}"]
        for values in setting["methods"].values()
    ]
    heads = ["method", "shared training", "own training", "evaluation", "minibatches"]
    return _table("What it cost", heads, rows, setting, _cost_note(setting["minibatches"]), folded=True)


def seeds_table(setting: dict[str, Any]) -> Table:
    """Every run's test scores.

    Args:
        setting: A setting of results.json.

    Returns:
        The table.
    """
    rows, words = [], wording(setting)
    for values in setting["methods"].values():
        for i, seed in enumerate(setting["seeds"]):
            scores = values["by_seed"]
            cells = [_value(scores[metric][i], metric) for metric in words.metrics]
            rows.append([f"{values['label']}, seed {seed}", *cells])
    return _table("Every run", ["run", *_heads(words.metrics)], rows, setting, folded=True)


def validation_table(setting: dict[str, Any]) -> Table | None:
    """Every method's scores on the validation data.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None without validation data.
    """
    words = wording(setting)
    rows = [
        [values["label"], *(mean(values["validation"][metric], metric) for metric in words.metrics)]
        for values in setting["methods"].values()
        if values["validation"] is not None
    ]
    heads, title = ["method", *_heads(words.metrics)], f"Scores on the validation {words.held_out}"
    return _table(title, heads, rows, setting, folded=words.samples == "images") if rows else None


def throughput_table(setting: dict[str, Any]) -> Table | None:
    """How many characters a second each training had, beside plain training.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None for images, or where nothing was timed.
    """
    methods, words = setting["methods"], wording(setting)
    trained = {m["reads"]: m for m in methods.values() if m.get("per_second")}
    if words.samples == "images" or not trained:
        return None
    plain = trained.get("base")
    rows = []
    for values in trained.values():
        rate = values["per_second"]
        ratio = "" if plain is None else number(rate["mean"] / plain["per_second"]["mean"], 2)
        error = "" if rate["se"] is None else f" ± {rate['se']:,.0f}"
        rows.append([values["training"], f"{rate['mean']:,.0f}{error}", ratio])
    note = (
        "Characters trained on in a second of each method's own part of the training, evaluations on the way included. "
        "These are the times of runs that shared the machine with one another: good for what a study takes, too coarse "
        "for a few percent."
    )
    return _table("Throughput", ["training", "characters per second", "ratio to base"], rows, setting, note)


def _heads(metrics: Sequence[str]) -> list[str]:
    return [SCORES[metric].head for metric in metrics]


def _value(value: float, metric: str) -> str:
    score = SCORES[metric]
    return number(score.factor * value, score.decimals)


def _difference(paired: dict[str, Any] | None, metric: str) -> str:
    return "" if paired is None else difference(paired, metric)


def _table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    setting: dict[str, Any],
    note: str = "",
    *,
    folded: bool = False,
) -> Table:
    ours = frozenset(labelled(m) for name, m in setting["methods"].items() if group_of(name).startswith("late-phase"))
    return Table(title, tuple(heads), tuple(map(tuple, rows)), note.strip(), folded, ours)


def _cost_note(batches: dict[str, int]) -> str:
    if batches["trained"] == batches["without_sharing"]:
        return "Nothing was shared: every method was trained from its first minibatch."
    return (
        f"Training that is the same for several methods was done once: {batches['trained']:,} minibatches in all "
        f"instead of {batches['without_sharing']:,}. A method's cost on its own is its shared and its own training "
        "together; methods read off one trajectory show the same training. Times are wall times of one process among "
        "those that shared the machine, means over seeds."
    )
