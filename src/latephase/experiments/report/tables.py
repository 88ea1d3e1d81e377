"""The tables of the page; on a narrow screen each row becomes a block of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from latephase.experiments.report.numbers import MINUS, SCORES, difference, duration, mean, number, resolved


def results_table(setting: dict[str, Any]) -> str:
    """Every method's scores and its differences to base and SWA.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element.
    """
    methods = setting["methods"]
    against = [other for other in ("base", "swa") if any(other in m["against"] for m in methods.values())]
    minus = [f"{MINUS} {methods[other]['label']}, points" for other in against]
    heads = ["method", "accuracy, %", *minus, "NLL", "ECE, %", "Brier"]
    rows = []
    for values in methods.values():
        cells = [values["label"], _mean(values["test"], "accuracy")]
        cells += [_difference(values["against"].get(other, {}).get("accuracy"), "accuracy") for other in against]
        cells += [_mean(values["test"], metric) for metric in ("nll", "ece", "brier")]
        rows.append(cells)
    return _table(heads, rows)


def other_differences_table(setting: dict[str, Any]) -> str | None:
    """The differences in negative log-likelihood, calibration and Brier score.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element; None if there is nothing to compare with.
    """
    rows = [
        [f"{values['label']} {MINUS} {setting['methods'][other]['label']}"]
        + [_difference(paired[metric], metric) for metric in ("nll", "ece", "brier")]
        for values in setting["methods"].values()
        for other, paired in values["against"].items()
    ]
    return _table(["difference", "NLL", "ECE, points", "Brier"], rows) if rows else None


def contrasts_table(setting: dict[str, Any]) -> str | None:
    """Late-phase training against its controls.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element; None without controls.
    """
    methods = setting["methods"]
    rows = [
        [f"{methods[c['method']]['label']} {MINUS} {methods[c['control']]['label']}", _difference(c, "accuracy")]
        for c in setting["contrasts"]
    ]
    return _table(["difference", "accuracy, points"], rows) if rows else None


def members_table(setting: dict[str, Any]) -> str | None:
    """The averaged model beside the members' ensemble and the mean member.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element; None if no method has members.
    """
    rows = []
    for values in setting["methods"].values():
        if values["ensemble"] is None:
            continue
        named = (
            (f"{values['label']}: averaged model", values["test"]),
            ("ensemble of the members' predictions", values["ensemble"]),
            ("mean member", values["member_mean"]),
        )
        rows += [[name, *(_mean(scores, metric) for metric in SCORES)] for name, scores in named]
    return _table(["model", *_heads()], rows) if rows else None


def cost_table(setting: dict[str, Any]) -> str:
    """Wall time of each method, the shared part apart.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element.
    """
    heads = ["method", "shared training", "own training", "evaluation", "minibatches"]
    rows = [
        [values["label"]]
        + [duration(values["seconds"][part]["mean"]) for part in ("shared", "own", "evaluation")]
        + [f"{setting['minibatches']['each_run']:,}"]
        for values in setting["methods"].values()
    ]
    return _table(heads, rows)


def seeds_table(setting: dict[str, Any]) -> str:
    """Every run's test scores.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element.
    """
    rows = []
    for values in setting["methods"].values():
        for i, seed in enumerate(setting["seeds"]):
            scores = values["by_seed"]
            cells = [
                number(factor * scores[metric][i], decimals) for metric, (_, factor, _, decimals) in SCORES.items()
            ]
            rows.append([f"{values['label']}, seed {seed}", *cells])
    return _table(["run", *_heads()], rows)


def validation_table(setting: dict[str, Any]) -> str | None:
    """Every method's scores on the validation images.

    Args:
        setting: A setting of results.json.

    Returns:
        A table element; None without validation images.
    """
    rows = [
        [values["label"], *(_mean(values["validation"], metric) for metric in SCORES)]
        for values in setting["methods"].values()
        if values["validation"] is not None
    ]
    return _table(["method", *_heads()], rows) if rows else None


def _heads() -> list[str]:
    return [f"{name}, %" if unit == "%" else name for name, _, unit, _ in SCORES.values()]


def _mean(scores: dict[str, Any], metric: str) -> str:
    return mean(scores[metric], metric)


def _difference(paired: dict[str, Any] | None, metric: str) -> str:
    if paired is None:
        return ""
    text = difference(paired, metric)
    return f"<b>{text}</b>" if resolved(paired) else text


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    body = []
    for first, *rest in rows:
        cells = "".join(
            f'<td data-head="{escape(name)}">{text}</td>' if text else '<td class="none"></td>'
            for name, text in zip(heads[1:], rest, strict=True)
        )
        mark = ' class="ours"' if first.startswith("late-phase") else ""
        body.append(f"<tr{mark}><th scope=row>{escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
