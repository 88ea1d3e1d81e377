"""The tables of a setting, of text that is made from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latephase.experiments.report.document import Table
from latephase.experiments.report.looks import group_of, in_groups
from latephase.experiments.report.numbers import MINUS, SCORES, difference, duration, labelled, mean, number

_HEADS = tuple(f"{name}, %" if unit == "%" else name for name, _, unit, _ in SCORES.values())


def results_table(setting: dict[str, Any]) -> Table:
    """Every method's scores and its differences to base and SWA.

    Args:
        setting: A setting of results.json.

    Returns:
        The table.
    """
    methods = setting["methods"]
    against = [other for other in ("base", "swa") if any(other in m["against"] for m in methods.values())]
    minus = [f"{MINUS} {methods[other]['label']}, points" for other in against]
    rows = []
    for name in in_groups(methods):
        values = methods[name]
        cells = [labelled(values), mean(values["test"]["accuracy"], "accuracy")]
        cells += [_difference(values["against"].get(other, {}).get("accuracy"), "accuracy") for other in against]
        cells += [mean(values["test"][metric], metric) for metric in ("nll", "ece", "brier")]
        rows.append(cells)
    several = len(setting["seeds"]) > 1
    note = (
        f"Mean ± standard error over seeds. NLL in nats, Brier 0 to 2, both lower is better. "
        f"{'In brackets 95% intervals of differences paired by seed; a star: it excludes zero. ' if against else ''}"
        if several
        else "NLL in nats, Brier 0 to 2, both lower is better. "
    )
    return _table("Test scores", ["method", "accuracy, %", *minus, "NLL", "ECE, %", "Brier"], rows, setting, note)


def other_differences_table(setting: dict[str, Any]) -> Table | None:
    """The differences in negative log-likelihood, calibration and Brier score.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None if there is nothing to compare with.
    """
    rows = [
        [f"{values['label']} {MINUS} {setting['methods'][other]['label']}"]
        + [_difference(paired[metric], metric) for metric in ("nll", "ece", "brier")]
        for values in setting["methods"].values()
        for other, paired in values["against"].items()
    ]
    heads = ["difference", "NLL", "ECE, points", "Brier"]
    return _table("Differences in the other scores", heads, rows, setting, folded=True) if rows else None


def contrasts_table(setting: dict[str, Any]) -> Table | None:
    """Late-phase training against its controls.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None without controls.
    """
    methods = setting["methods"]
    rows = [
        [f"{methods[c['method']]['label']} {MINUS} {methods[c['control']]['label']}", _difference(c, "accuracy")]
        for c in setting["contrasts"]
    ]
    return (
        _table("Late-phase against its controls", ["difference", "accuracy, points"], rows, setting) if rows else None
    )


def members_table(setting: dict[str, Any]) -> Table | None:
    """The averaged model beside the members' ensemble and the mean member.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None if no method has members.
    """
    rows = []
    for values in setting["methods"].values():
        if values["ensemble"] is None:
            continue
        label = values["label"]
        named = [
            (f"{label}: the model", values["test"]),
            (f"{label}: ensemble of the members' predictions", values["ensemble"]),
            (f"{label}: mean member", values["member_mean"]),
        ]
        rows += [[name, *(mean(s[metric], metric) for metric in SCORES)] for name, s in named if s is not None]
    return _table("The model and its members", ["model", *_HEADS], rows, setting) if rows else None


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
    rows = []
    for values in setting["methods"].values():
        for i, seed in enumerate(setting["seeds"]):
            scores = values["by_seed"]
            cells = [
                number(factor * scores[metric][i], decimals) for metric, (_, factor, _, decimals) in SCORES.items()
            ]
            rows.append([f"{values['label']}, seed {seed}", *cells])
    return _table("Every run", ["run", *_HEADS], rows, setting, folded=True)


def validation_table(setting: dict[str, Any]) -> Table | None:
    """Every method's scores on the validation images.

    Args:
        setting: A setting of results.json.

    Returns:
        The table; None without validation images.
    """
    rows = [
        [values["label"], *(mean(values["validation"][metric], metric) for metric in SCORES)]
        for values in setting["methods"].values()
        if values["validation"] is not None
    ]
    heads = ["method", *_HEADS]
    return _table("Scores on the validation images", heads, rows, setting, folded=True) if rows else None


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
