"""The kinds of figure that both reports draw; each gives the drawing together with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from latephase.experiments.report.document import Figure
from latephase.experiments.report.looks import Look
from latephase.experiments.report.numbers import number
from latephase.experiments.report.svg import GRID, INK, MUTED, PAPER, SERIES, inline_svg, style

WIDTH = 4.7  # inches; a desk shows two side by side, a phone one
PLAIN = Look(0, "o", "-", True)


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in a row of its own.

    Attributes:
        label: Name of the row.
        middle: The value; None leaves the row empty.
        low: Lower end of its interval, or None.
        high: Upper end, or None.
        look: How it is drawn.
        group: Rows of different groups stand apart.
        bar: A further value, drawn as an upright bar.
    """

    label: str
    middle: float | None
    low: float | None = None
    high: float | None = None
    look: Look = PLAIN
    group: str = ""
    bar: float | None = None


def dots(
    name: str,
    title: str,
    caption: str,
    rows: Sequence[Dot],
    *,
    axis: str,
    decimals: int = 2,
    zero: bool = False,
    limits: tuple[float, float] | None = None,
    interval: str = "interval",
    bar: str = "",
) -> Figure:
    """Values by name, one to a row, with error bars.

    Args:
        name: Name of the figure.
        title: Its title.
        caption: How to read it.
        rows: The values.
        axis: What they are, with their unit.
        decimals: Digits after the point of the printed values.
        zero: Whether zero is marked, and the values carry their sign.
        limits: Ends of the axis; None fits it.
        interval: What the error bars are, for the CSV file.
        bar: What the upright bars are, for the CSV file; none are written if empty.

    Returns:
        The figure.
    """
    rows = list(rows)
    places = _places([row.group for row in rows])
    with style():
        figure, axes = new_figure(0.75 + 0.3 * (places[-1] + 1))
        if zero:
            axes.axvline(0, color=MUTED, linewidth=1)
        for row, y in zip(rows, places, strict=True):
            if row.middle is None:
                continue
            colour = SERIES[row.look.series]
            if row.low is not None and row.high is not None:
                axes.errorbar(
                    row.middle,
                    y,
                    xerr=[[max(0.0, row.middle - row.low)], [max(0.0, row.high - row.middle)]],
                    color=colour,
                    linewidth=1.6,
                    capsize=2.5,
                    capthick=1.2,
                    fmt="none",
                )
            mark(axes, row.middle, y, row.look, 6.5)
            if row.bar is not None:
                axes.plot(row.bar, y, "|", color=INK, markersize=12, markeredgewidth=1.3, zorder=4)
            _value(axes, number(row.middle, decimals, signed=zero), row.middle, y)
        axes.set_yticks(places, [row.label for row in rows], color=INK)
        axes.set_ylim(places[-1] + 0.6, -0.8)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        if limits is not None:
            axes.set_xlim(*limits)
        axes.margins(x=0.08)
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        svg = inline_svg(figure, name, f"{title}. {axis}")
    heads = ["row", axis, f"low ({interval})", f"high ({interval})", *([bar] if bar else [])]
    numbers = [(r.label, r.middle, r.low, r.high, *((r.bar,) if bar else ())) for r in rows]
    return Figure(name, title, svg, caption, tuple(heads), tuple(numbers))


def _places(groups: Sequence[str]) -> list[float]:
    """Where the rows stand: one apart, and somewhat further where a group begins."""
    places = [0.0]
    for before, group in pairwise(groups):
        places.append(places[-1] + (1.0 if group == before else 1.45))
    return places


def _value(axes: Axes, text: str, x: float, y: float) -> None:
    at: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5, "color": MUTED}
    axes.annotate(text, (x, y), (0, 5), **at)


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        label: Its name.
        x: Positions.
        y: Values.
        look: How it is drawn.
        group: Curves of different groups get panels of their own where there are many.
        low: Lower ends of a band around it, or None.
        high: Upper ends.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look = PLAIN
    group: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


_PER_PANEL = 6


def curves(
    name: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    band: str = "band",
    limits: tuple[float, float] | None = None,
    line_at: tuple[float, str] | None = None,
    ticks: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Curves that carry their names at their ends; many are spread over panels, the first curve in each of them.

    Args:
        name: Name of the figure.
        title: Its title.
        caption: How to read it.
        series: The curves; the first is what others are compared with.
        x: What the positions are, with their unit.
        y: What the values are.
        band: What the bands are, for the CSV file.
        limits: Ends of the upright axis; None fits it.
        line_at: A position to mark, and its name.
        ticks: Names of positions, in place of numbers.

    Returns:
        The figure.
    """
    panels = _panels(series)
    with style():
        figure = matplotlib.figure.Figure(figsize=(WIDTH, 0.35 + 2.55 * len(panels)), layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            for i, curve in enumerate(panel):
                _curve(axes, curve, i, len(panel))
            if ticks:
                axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
            if limits is not None:
                axes.set_ylim(*limits)
            if line_at is not None:
                axes.axvline(line_at[0], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
                top: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
                axes.annotate(line_at[1], (line_at[0], 1), (3, -8), fontsize=8, color=MUTED, **top)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            axes.margins(x=0.01)
            label_ends(axes, panel)
        svg = inline_svg(figure, name, f"{title}. {y} against {x}")
    banded = any(curve.low is not None for curve in series)
    heads = ("curve", x, y, *((f"low ({band})", f"high ({band})") if banded else ()))
    return Figure(name, title, svg, caption, heads, tuple(row for curve in series for row in _numbers(curve, banded)))


def _panels(series: Sequence[Series]) -> list[list[Series]]:
    if len(series) <= _PER_PANEL:
        return [list(series)]
    first, *others = series
    groups: dict[str, list[Series]] = {}
    for curve in others:
        # Late-phase training keeps together, apart from what it is compared with.
        groups.setdefault("late-phase" if curve.group.startswith("late-phase") else curve.group, []).append(curve)
    panels: list[list[Series]] = []
    open_to_more = False
    for name, group in groups.items():
        for begin in range(0, len(group), _PER_PANEL - 1):
            part = group[begin : begin + _PER_PANEL - 1]
            if open_to_more and name != "late-phase" and len(panels[-1]) + len(part) <= _PER_PANEL:
                panels[-1] += part
            else:
                panels.append([first, *part])
            open_to_more = name != "late-phase"
    return panels


def _curve(axes: Axes, curve: Series, position: int, count: int) -> None:
    look, colour = curve.look, SERIES[curve.look.series]
    step = max(1, len(curve.x) // 6)
    axes.plot(
        curve.x,
        curve.y,
        color=colour,
        linestyle=look.dashes,
        marker=look.marker,
        markersize=4.5,
        markerfacecolor=colour if look.filled else PAPER,
        markeredgecolor=colour,
        markevery=(position * step // max(1, count), step),
    )
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0)


def _numbers(curve: Series, banded: bool) -> list[tuple[object, ...]]:
    empty = [None] * len(curve.x)
    columns = [curve.x, curve.y, *((curve.low or empty, curve.high or empty) if banded else ())]
    return [(curve.label, *row) for row in zip(*columns, strict=True)]


def label_ends(axes: Axes, panel: Sequence[Series]) -> None:
    """Write each curve's name beside its last point, pushed apart where they would overlap.

    Args:
        axes: Axes whose limits are final.
        panel: The curves in it.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform((curve.x[-1], curve.y[-1])) for curve in panel]
    gap = 0.105
    order = sorted(range(len(panel)), key=lambda i: float(ends[i][1]))
    heights = _apart([min(0.97, max(0.03, float(ends[i][1]))) for i in order], gap)
    # The whole stack stays beside the axes.
    heights = [height - max(0.0, heights[-1] - 0.97) for height in heights]
    heights = [height + max(0.0, 0.03 - heights[0]) for height in heights]
    for i, height in zip(order, heights, strict=True):
        look, end = panel[i].look, ends[i]
        start = (min(1.0, float(end[0])), min(1.0, max(0.0, float(end[1]))))
        across: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
        axes.plot([start[0], 1.05], [start[1], height], color=GRID, linewidth=0.9, zorder=1, **across)
        colour = SERIES[look.series]
        face = colour if look.filled else PAPER
        axes.plot(1.065, height, look.marker, color=colour, markerfacecolor=face, markersize=4.5, **across)
        axes.text(1.095, height, panel[i].label, fontsize=8, va="center", color=INK, transform=axes.transAxes)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Sorted heights moved as little as needed to lie a gap apart (blocks that touch share their mean)."""
    blocks: list[tuple[float, int]] = []  # the lowest place of a block and how many are in it
    for height in heights:
        blocks.append((height, 1))
        while len(blocks) > 1 and blocks[-2][0] + gap * blocks[-2][1] > blocks[-1][0]:
            (low, a), (high, b) = blocks[-2], blocks[-1]
            middle = (a * (low + gap * (a - 1) / 2) + b * (high + gap * (b - 1) / 2)) / (a + b)
            blocks[-2:] = [(middle - gap * (a + b - 1) / 2, a + b)]
    return [low + gap * i for low, count in blocks for i in range(count)]


def mark(axes: Axes, x: float, y: float, look: Look, size: float) -> None:
    """One marker.

    Args:
        axes: Where.
        x: Position.
        y: Height.
        look: How it is drawn.
        size: Its size in points.
    """
    colour = SERIES[look.series]
    edge, face = (PAPER, colour) if look.filled else (colour, PAPER)
    width = 0.7 if look.filled else 1.3
    axes.plot(
        x, y, look.marker, markersize=size, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width, zorder=3
    )


def new_figure(height: float, width: float = WIDTH) -> tuple[matplotlib.figure.Figure, Axes]:
    """An empty figure of one pair of axes.

    Args:
        height: In inches.
        width: In inches.

    Returns:
        The figure and its axes.
    """
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
