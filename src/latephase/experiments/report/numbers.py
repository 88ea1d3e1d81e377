"""Numbers as the tables, sentences and figures write them."""

from __future__ import annotations

from typing import Any

# How each score is called, the factor it is shown with, its unit and its decimals.
SCORES = {
    "accuracy": ("accuracy", 100.0, "%", 2),
    "nll": ("NLL", 1.0, "nats", 3),
    "ece": ("ECE", 100.0, "%", 2),
    "brier": ("Brier", 1.0, "", 4),
}


MINUS = "\u2212"


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with a true minus sign.

    Args:
        value: The number.
        decimals: Digits after the point.
        signed: Write a plus sign too.

    Returns:
        The text.

    Example:
        >>> number(-0.5, 2)
        '\u22120.50'
    """
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return text.replace("-", MINUS)


def labelled(method: dict[str, Any]) -> str:
    """A method's label, with its cost where that is not the others'.

    Args:
        method: `label`, and `cost` in multiples of the others' minibatches.

    Returns:
        Such as `deep ensemble, 10\u00d7 the cost`.

    Example:
        >>> labelled({"label": "SWA", "cost": 1})
        'SWA'
    """
    cost = method.get("cost", 1)
    return method["label"] if cost == 1 else f"{method['label']}, {cost}\u00d7 the cost"


def mean(summary: dict[str, Any], metric: str) -> str:
    """A mean over seeds with its standard error.

    Args:
        summary: `mean` and `se`.
        metric: Which score it is.

    Returns:
        Such as `87.53 ± 0.48`.
    """
    _, factor, _, decimals = SCORES[metric]
    text = number(factor * summary["mean"], decimals)
    return text if summary["se"] is None else f"{text} ± {number(factor * summary['se'], decimals)}"


def difference(paired: dict[str, Any], metric: str) -> str:
    """A paired difference with its interval, starred where that excludes zero.

    Args:
        paired: `mean`, `low` and `high`.
        metric: Which score it is.

    Returns:
        Such as `+2.56 [+1.77, +3.34]*`.
    """
    _, factor, _, decimals = SCORES[metric]
    text = number(factor * paired["mean"], decimals, signed=True)
    if paired["low"] is None:
        return text
    low, high = (number(factor * paired[end], decimals, signed=True) for end in ("low", "high"))
    return f"{text} [{low}, {high}]{'*' if resolved(paired) else ''}"


def interval(paired: dict[str, Any], metric: str) -> str:
    """The interval of a paired difference in words.

    Args:
        paired: `low` and `high`.
        metric: Which score it is.

    Returns:
        Such as `1.77 to 3.34`.
    """
    _, factor, _, decimals = SCORES[metric]
    return " to ".join(number(factor * paired[end], decimals) for end in ("low", "high"))


def resolved(paired: dict[str, Any]) -> bool:
    """Whether a difference is told apart from zero.

    Args:
        paired: `low` and `high`.

    Returns:
        True if the interval excludes zero; False too if there is none, or one without any width.
    """
    if paired["low"] is None or paired["low"] == paired["high"]:
        # Differences of few seeds that happen to be equal (errors are whole numbers) give an interval without width.
        return False
    return paired["low"] > 0 or paired["high"] < 0


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    Args:
        seconds: The time.

    Returns:
        Such as `0.4 s`, `12 s`, `3.5 min` or `2.0 h`.
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
