"""Reliability diagrams and matrices of disagreement, which both reports draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from latephase.evaluation import ReliabilityBin
from latephase.experiments.report.document import Figure
from latephase.experiments.report.looks import Look
from latephase.experiments.report.numbers import number
from latephase.experiments.report.plots import WIDTH, new_figure
from latephase.experiments.report.svg import INK, MUTED, PAPER, SERIES, inline_svg, style

_COLUMNS = 3


@dataclass(frozen=True)
class Reliability:
    """What one panel of a reliability diagram shows.

    Attributes:
        label: Whose predictions they are.
        bins: Their bins.
        look: How they are drawn.
    """

    label: str
    bins: Sequence[ReliabilityBin]
    look: Look


def reliability(name: str, title: str, panels: Sequence[Reliability], note: str = "") -> Figure:
    """Accuracy against confidence, a panel for each method, with 95% intervals and the share of samples.

    Args:
        name: Name of the figure.
        title: Its title.
        panels: The methods.
        note: What the caption says besides.

    Returns:
        The figure.
    """
    panels = list(panels)
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with style():
        side = WIDTH / columns if columns > 1 else 3.2
        figure = matplotlib.figure.Figure(figsize=(side * columns, 1.02 * side * rows + 0.2), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _reliability_panel(axes, panel)
        for i, axes in enumerate(grid.flat[: len(panels)]):
            axes.tick_params(labelbottom=i + columns >= len(panels))
        figure.supxlabel("confidence", fontsize=9, color=MUTED)
        figure.supylabel("accuracy", fontsize=9, color=MUTED)
        svg = inline_svg(figure, name, f"{title}. Accuracy against confidence")
    caption = (
        "Accuracy in each bin of confidence, with its 95% interval (Wilson); columns along the bottom: the share of "
        "samples. Above the diagonal a model is less sure than it should be, below it more."
    )
    heads = ("model", "bin from", "bin to", "samples", "confidence", "accuracy", "low (95%)", "high (95%)")
    numbers = tuple(
        (p.label, b.low, b.high, b.count, b.confidence, b.accuracy, b.accuracy_low, b.accuracy_high)
        for p in panels
        for b in p.bins
    )
    return Figure(name, title, svg, f"{caption} {note}".strip(), heads, numbers)


def _reliability_panel(axes: Axes, panel: Reliability) -> None:
    colour = SERIES[panel.look.series]
    total = sum(b.count for b in panel.bins) or 1
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    for b in panel.bins:
        share = b.count / total
        box = Rectangle((b.low, 0), b.high - b.low, 0.5 * share, facecolor=MUTED, alpha=0.3, edgecolor="none")
        axes.add_patch(box)
    shown = [b for b in panel.bins if b.count]
    x, y = [b.confidence or 0.0 for b in shown], [b.accuracy or 0.0 for b in shown]
    errors = [
        [max(0.0, (b.accuracy or 0.0) - (b.accuracy_low or 0.0)) for b in shown],
        [max(0.0, (b.accuracy_high or 0.0) - (b.accuracy or 0.0)) for b in shown],
    ]
    axes.errorbar(
        x,
        y,
        yerr=errors,
        fmt=panel.look.marker,
        color=colour,
        markerfacecolor=colour if panel.look.filled else PAPER,
        markersize=3.6,
        elinewidth=0.9,
        linewidth=1,
    )
    axes.set_title(panel.label, fontsize=8, color=INK, pad=3)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_aspect("equal")


def disagreement(name: str, title: str, caption: str, matrix: Sequence[Sequence[float]]) -> Figure:
    """How often two members predict different classes, as a matrix.

    Args:
        name: Name of the figure.
        title: Its title.
        caption: How to read it.
        matrix: Fractions, K x K.

    Returns:
        The figure.
    """
    count = len(matrix)
    top = max(max(row) for row in matrix) or 1.0
    with style():
        figure, axes = new_figure(3.4)
        axes.grid(False)
        for i, row in enumerate(matrix):
            for j, share in enumerate(row):
                if i == j:
                    continue
                # Opacity instead of a colour map: the cells are then readable on a light and a dark page.
                place, alpha = (j - 0.47, i - 0.47), 0.06 + 0.5 * share / top
                axes.add_patch(Rectangle(place, 0.94, 0.94, facecolor=SERIES[2], alpha=alpha, edgecolor="none"))
                if count <= 12:
                    axes.text(j, i, number(100 * share, 1), ha="center", va="center", fontsize=7, color=INK)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        names = [str(k + 1) for k in range(count)]
        axes.set_xticks(range(count), names)
        axes.set_yticks(range(count), names)
        axes.set_xlabel("member")
        axes.set_ylabel("member")
        svg = inline_svg(figure, name, title)
    heads = ("member", *(f"against member {k}" for k in names))
    return Figure(name, title, svg, caption, heads, tuple((k, *row) for k, row in zip(names, matrix, strict=True)))
