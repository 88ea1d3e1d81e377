"""How each method is drawn: a colour for its group, a marker and a line style of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Groups in the order in which they are drawn, and the colour of each.
GROUPS = {
    "plain": 0,
    "averaging": 6,
    "control": 4,
    "ensemble": 5,
    "late-phase": 2,
    "late-phase, averaged": 3,
    "other": 7,
}
_GROUP_OF = {
    "base": "plain",
    "dropout": "plain",
    "swa": "averaging",
    "ema": "averaging",
    "lookahead": "averaging",
    "twin": "control",
    "k-batch": "control",
    "lr-over-k": "control",
    "decay-over-k": "control",
    "rank-one": "control",
    "lora": "control",
    "mc-dropout": "ensemble",
    "batch-ensemble": "ensemble",
    "deep-ensemble": "ensemble",
}
# Those that stand in every study keep their marker; the others take what is left, in the order of their groups.
_MARKERS = {
    "base": "o",
    "swa": "s",
    "late-phase": "D",
    "late-phase+swa": "P",
    "twin": "^",
    "k-batch": "v",
    "lr-over-k": "X",
    "deep-ensemble": "*",
}
_LEFT = ("<", ">", "d")
# Hard to tell apart when they are small, so they come last.
_ROUND = ("p", "8", "h", "H")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 2)), (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How one method is drawn.

    Attributes:
        series: Which of the page's colours.
        marker: A marker of matplotlib.
        dashes: A line style of matplotlib.
        filled: Whether the marker is filled.
    """

    series: int
    marker: str
    dashes: Any
    filled: bool


def group_of(method: str) -> str:
    """The group of a method, by its name.

    Args:
        method: The method's name.

    Returns:
        A key of `GROUPS`.

    Example:
        >>> group_of("late-phase-rank-one+swa"), group_of("k-batch"), group_of("something-new")
        ('late-phase, averaged', 'control', 'other')
    """
    training, _, reading = method.partition("+")
    if training.startswith("late-phase"):
        return "late-phase, averaged" if reading else "late-phase"
    if training in _GROUP_OF:
        return _GROUP_OF[training]
    family = training.rpartition("-")[0]
    return _GROUP_OF.get(family, "other")


def in_groups(methods: Iterable[str]) -> list[str]:
    """Methods sorted by group; inside a group they keep their order.

    Args:
        methods: Names of methods.

    Returns:
        The same names.
    """
    order = list(GROUPS)
    return sorted(methods, key=lambda method: order.index(group_of(method)))


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method of a study; with up to 30 methods no two share marker and filling.

    Args:
        methods: Names of all methods of the study.

    Returns:
        The looks by name, in the order of the groups.
    """
    ordered = in_groups(dict.fromkeys(methods))
    taken = {_MARKERS[m] for m in ordered if m in _MARKERS}
    pool = [(m, True) for m in (*_LEFT, *_MARKERS.values()) if m not in taken]
    pool += [(m, False) for m in (*_MARKERS.values(), *_LEFT)]
    pool += [(m, filled) for filled in (True, False) for m in _ROUND]
    looks: dict[str, Look] = {}
    inside: dict[str, int] = {}
    used = 0
    for method in ordered:
        group = group_of(method)
        inside[group] = inside.get(group, -1) + 1
        if method in _MARKERS:
            marker, filled = _MARKERS[method], True
        else:
            marker, filled = pool[used % len(pool)]
            used += 1
        looks[method] = Look(GROUPS[group], marker, _DASHES[inside[group] % len(_DASHES)], filled)
    return looks
