"""The figures of a setting, each drawn from results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from latephase.experiments.report.numbers import SCORES, number
from latephase.experiments.report.svg import (
    INK,
    MUTED,
    PAPER,
    colour_of,
    dashes_of,
    inline_svg,
    marker_of,
    style,
)

_WIDTH = 4.7  # inches; the page shows two side by side, a phone one


def differences_range(settings: Sequence[dict[str, Any]]) -> tuple[float, float] | None:
    """The range of all intervals, so that several settings can be drawn to one scale.

    Args:
        settings: Settings of results.json.

    Returns:
        The two ends, in points; None if there is no interval.
    """
    methods = [method["against"] for setting in settings for method in setting["methods"].values()]
    paired = [against["base"]["accuracy"] for against in methods if "base" in against]
    ends = [100 * p[end] for p in paired for end in ("low", "high") if p[end] is not None]
    if not ends:
        return None
    room = 0.06 * (max(*ends, 0.0) - min(*ends, 0.0))
    return min(*ends, 0.0) - room, max(*ends, 0.0) + room


def differences_figure(setting: dict[str, Any], name: str, limits: tuple[float, float] | None = None) -> str | None:
    """Each method's paired difference to plain SGD in accuracy, with its 95% interval.

    Args:
        setting: A setting of results.json.
        name: Prefix of the figure's ids.
        limits: Ends of the axis; None fits it to this setting.

    Returns:
        The SVG element; None without `base` or with a single seed.
    """
    methods = {n: m for n, m in setting["methods"].items() if "base" in m["against"]}
    if not methods or any(m["against"]["base"]["accuracy"]["low"] is None for m in methods.values()):
        return None
    with style():
        figure, axes = _figure(0.9 + 0.34 * len(methods))
        axes.axvline(0, color=MUTED, linewidth=1)
        for row, (method, values) in enumerate(methods.items()):
            paired = values["against"]["base"]["accuracy"]
            middle, low, high = (100 * paired[key] for key in ("mean", "low", "high"))
            _error_bar(axes, middle, row, low, high, method)
            axes.annotate(
                number(middle, 2, signed=True),
                (middle, row),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=MUTED,
            )
        _methods_axis(axes, methods)
        if limits is not None:
            axes.set_xlim(*limits)
        axes.set_xlabel("accuracy minus plain SGD, points (paired, 95% interval)")
        return inline_svg(figure, name, f"Difference in accuracy to plain SGD by method: {setting['title']}")


def scores_figure(setting: dict[str, Any], metric: str, name: str) -> str:
    """A score by method, with standard errors over seeds.

    Args:
        setting: A setting of results.json.
        metric: Which score.
        name: Prefix of the figure's ids.

    Returns:
        The SVG element.
    """
    label, factor, unit, _ = SCORES[metric]
    methods = setting["methods"]
    with style():
        figure, axes = _figure(0.9 + 0.34 * len(methods))
        for row, (method, values) in enumerate(methods.items()):
            summary = values["test"][metric]
            middle, error = factor * summary["mean"], factor * (summary["se"] or 0.0)
            _error_bar(axes, middle, row, middle - error, middle + error, method)
            if values["ensemble"] is not None:
                ensemble = factor * values["ensemble"][metric]["mean"]
                axes.plot(ensemble, row, "|", color=INK, markersize=13, markeredgewidth=1.2)
        _methods_axis(axes, methods)
        axes.set_xlabel(f"test {label}, {unit}".rstrip(", ") + " (± standard error)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        return inline_svg(figure, name, f"Test {label} by method: {setting['title']}")


def curves_figure(setting: dict[str, Any], name: str) -> str:
    """Held-out error over training, mean over seeds, with T0 marked.

    Args:
        setting: A setting of results.json.
        name: Prefix of the figure's ids.

    Returns:
        The SVG element.
    """
    recipe = setting["recipe"]
    epochs = recipe["training"]["epochs"]
    # Readings such as SWA have no curve of their own: their trajectory is another method's.
    drawn: dict[str, dict[str, Any]] = {}
    for values in setting["methods"].values():
        drawn.setdefault(values["reads"], values)
    with style():
        figure, axes = _figure(3.2)
        seen = []
        for training, values in drawn.items():
            x = np.array(values["curve"]["epoch"])
            errors = 100 * (1 - np.array(values["curve"]["accuracy"]))
            look: dict[str, Any] = {"color": colour_of(training), "linestyle": dashes_of(training)}
            axes.plot(x, errors, label=values["training"], **look)
            # The first epochs are far above all others; the axis is for what comes after them.
            seen.append(errors[x > 0.1 * epochs] if epochs > 10 else errors)
        if any(values["start"] for values in drawn.values()):
            begin = recipe["late_phase"]["start"] * epochs
            axes.axvline(begin, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            top: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate("T0", (begin, 1), (4, -9), fontsize=8.5, color=MUTED, **top)
        low, high = np.concatenate(seen).min(), np.concatenate(seen).max()
        room = 0.08 * max(high - low, 0.5)
        axes.set_ylim(max(0.0, low - room), high + room)
        axes.set_xlim(0, epochs)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{'validation' if setting['images']['validation'] else 'test'} error, %")
        _legend(figure)
        return inline_svg(figure, name, f"Learning curves: {setting['title']}")


def reliability_figure(setting: dict[str, Any], name: str) -> str:
    """Accuracy against confidence in 15 bins; hollow where a bin holds less than a hundredth of the predictions.

    Args:
        setting: A setting of results.json.
        name: Prefix of the figure's ids.

    Returns:
        The SVG element.
    """
    methods = setting["methods"]
    shown = {n: m for n, m in methods.items() if n in ("base", "swa", "late-phase", "late-phase+swa")} or methods
    with style():
        figure, axes = _figure(3.4)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for method, values in shown.items():
            columns = [np.array(values["reliability"][key]) for key in ("count", "confidence", "correct")]
            count, confidence, correct = (column[columns[0] > 0] for column in columns)
            x, y, few = confidence / count, correct / count, count < 0.01 * count.sum()
            colour = colour_of(method)
            look: dict[str, Any] = {"color": colour, "linestyle": dashes_of(method), "linewidth": 1.2}
            axes.plot(x, y, zorder=2, **look)
            points: dict[str, Any] = {"marker": marker_of(method), "linewidth": 1.1, "edgecolor": colour, "zorder": 3}
            axes.scatter(x[~few], y[~few], s=26, facecolor=colour, label=values["label"], **points)
            axes.scatter(x[few], y[few], s=20, facecolor=PAPER, **points)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        _legend(figure)
        return inline_svg(figure, name, f"Reliability diagram: {setting['title']}")


def agreement_figure(setting: dict[str, Any], name: str) -> str | None:
    """How often two members predict different classes.

    Args:
        setting: A setting of results.json.
        name: Prefix of the figure's ids.

    Returns:
        The SVG element; None if no method has at least two members.
    """
    matrices = [m["disagreement"] for m in setting["methods"].values() if m["disagreement"]]
    if not matrices or len(matrices[0]) < 2:
        return None
    matrix = 100 * np.array(matrices[0])
    K = len(matrix)
    with style():
        figure, axes = _figure(3.4)
        axes.grid(False)
        top = matrix.max() or 1.0
        for i in range(K):
            for j in range(K):
                # Opacity instead of a colour map: the cells are then readable on a light and a dark page.
                share = matrix[i, j] / top
                axes.add_patch(_cell(j, i, alpha=0.06 + 0.5 * share) if i != j else _cell(j, i, alpha=0.0))
                if i != j and K <= 12:
                    axes.text(j, i, number(matrix[i, j], 1), ha="center", va="center", fontsize=7, color=INK)
        axes.set_xlim(-0.5, K - 0.5)
        axes.set_ylim(K - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.set_xticks(range(K), [str(k + 1) for k in range(K)])
        axes.set_yticks(range(K), [str(k + 1) for k in range(K)])
        axes.set_xlabel("member")
        axes.set_ylabel("member")
        return inline_svg(figure, name, f"Disagreement between members: {setting['title']}")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure) -> None:
    """One legend above the axes, where it hides nothing."""
    figure.legend(ncols=4, fontsize=8, labelcolor=INK, loc="outside upper left", handlelength=2.4, columnspacing=1.2)


def _error_bar(axes: Axes, middle: float, row: int, low: float, high: float, method: str) -> None:
    colour = colour_of(method)
    axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(middle, row, marker_of(method), color=colour, markersize=8, markeredgecolor=PAPER, markeredgewidth=0.8)


def _methods_axis(axes: Axes, methods: dict[str, Any]) -> None:
    axes.set_yticks(range(len(methods)), [m["label"] for m in methods.values()], color=INK)
    axes.set_ylim(len(methods) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _cell(column: int, row: int, alpha: float) -> Rectangle:

    return Rectangle(
        (column - 0.47, row - 0.47), 0.94, 0.94, facecolor=colour_of("late-phase"), alpha=alpha, edgecolor="none"
    )
