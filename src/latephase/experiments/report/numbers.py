"""Numbers as the tables, sentences and figures write them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """How a score is written.

    Attributes:
        name: What it is called.
        factor: What it is multiplied by.
        unit: Its unit.
        decimals: Digits after the point.
        gap: The unit of a difference of two.
        more: Whether higher is better.
        short: What it is called where there is little room; empty if its name is short.
    """

    name: str
    factor: float
    unit: str
    decimals: int
    gap: str = ""
    more: bool = False
    short: str = ""

    @property
    def head(self) -> str:
        """The name as a table's head."""
        return f"{self.name}, %" if self.unit == "%" else self.name

    @property
    def gap_head(self) -> str:
        """The head of a column of differences."""
        return f"{self.name}, {self.gap}" if self.gap and self.gap != self.name else self.name


SCORES = {
    "accuracy": Score("accuracy", 100.0, "%", 2, "points", more=True),
    "bpc": Score("bits per character", 1.0, "", 4, "bits per character", short="bpc"),
    "nll": Score("NLL", 1.0, "nats", 3),
    "ece": Score("ECE", 100.0, "%", 2, "points"),
    "brier": Score("Brier", 1.0, "", 4),
}


MINUS = "\u2212"


def number(value: float, decimals: int, signed: bool = False, huge: float = math.inf) -> str:
    """A number with a true minus sign, or its power of ten where it has diverged.

    Args:
        value: The number.
        decimals: Digits after the point.
        signed: Write a plus sign too.
        huge: From where on digits say nothing.

    Returns:
        The text.

    Example:
        >>> number(-0.5, 2), number(2e30, 3, huge=1e4)
        ('\u22120.50', '2e+30')
    """
    text = f"{value:{'+' if signed else ''}{f'.{decimals}f' if abs(value) < huge else '.0e'}}"
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


def has_members(method: dict[str, Any]) -> bool:
    """Whether a method has an ensemble to speak of, which one member alone is not.

    Args:
        method: A method of results.json.

    Returns:
        True for at least two members.
    """
    disagreement = method["disagreement"]
    return method["ensemble"] is not None and (disagreement is None or len(disagreement) > 1)


def mean(summary: dict[str, Any], metric: str) -> str:
    """A mean over seeds with its standard error.

    Args:
        summary: `mean` and `se`.
        metric: Which score it is.

    Returns:
        Such as `87.53 ± 0.48`.
    """
    score = SCORES[metric]
    text = number(score.factor * summary["mean"], score.decimals)
    return text if summary["se"] is None else f"{text} ± {number(score.factor * summary['se'], score.decimals)}"


def difference(paired: dict[str, Any], metric: str) -> str:
    """A paired difference with its interval, starred where that excludes zero.

    Args:
        paired: `mean`, `low` and `high`.
        metric: Which score it is.

    Returns:
        Such as `+2.56 [+1.77, +3.34]*`.
    """
    score = SCORES[metric]
    text = number(score.factor * paired["mean"], score.decimals, signed=True)
    if paired["low"] is None:
        return text
    low, high = (number(score.factor * paired[end], score.decimals, signed=True) for end in ("low", "high"))
    return f"{text} [{low}, {high}]{'*' if resolved(paired) else ''}"


def interval(paired: dict[str, Any], metric: str) -> str:
    """The interval of a paired difference in words.

    Args:
        paired: `low` and `high`.
        metric: Which score it is.

    Returns:
        Such as `1.77 to 3.34`.
    """
    score = SCORES[metric]
    return " to ".join(number(score.factor * paired[end], score.decimals) for end in ("low", "high"))


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
