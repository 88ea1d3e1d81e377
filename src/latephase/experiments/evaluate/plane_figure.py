"""The plane through three members, drawn with labelled contours that need no colour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from latephase.experiments.report.document import Figure
from latephase.experiments.report.looks import Look
from latephase.experiments.report.plots import mark, new_figure
from latephase.experiments.report.svg import INK, MUTED, PAPER, SERIES, inline_svg, style

_LEVELS = 9
# On a plate of the card's colour, since contours and their labels run below.
_LABEL: dict[str, Any] = {
    "textcoords": "offset points",
    "fontsize": 8,
    "color": INK,
    "bbox": {"boxstyle": "round,pad=0.12", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8},
    "zorder": 6,
}


def plane_figure(name: str, title: str, caption: str, plane: dict[str, Any], field: str) -> Figure:
    """Contours of loss or error, with the members and their average.

    Args:
        name: Name of the figure.
        title: Its title.
        caption: How to read it.
        plane: A `Plane` as plain values.
        field: `loss` or `error`.

    Returns:
        The figure.
    """
    factor, unit = (100.0, "%") if field == "error" else (1.0, "nats")
    x, y = np.array(plane["x"]), np.array(plane["y"])
    z = factor * np.array(plane[field])
    with style():
        figure, axes = new_figure(4.1)
        # Levels at equal shares of the points, which shows the floor of a valley as well as its walls.
        levels = np.unique(np.quantile(z, np.linspace(0.04, 0.96, _LEVELS)).round(6))
        if len(levels) > 1 and z.max() > z.min():
            for level in levels:
                # One translucent sheet above each level: darker is higher, on a light and on a dark page.
                axes.contourf(x, y, z, levels=[level, z.max() + 1], colors=[SERIES[2]], alpha=0.075)
            lines = axes.contour(x, y, z, levels=levels, colors=[MUTED], linewidths=0.7)
            # As many digits as keep neighbouring levels apart.
            digits = max(1, 1 - math.floor(math.log10(max(1e-6, float(np.diff(levels).min())))))
            axes.clabel(lines, fmt=f"%.{min(digits, 3)}f", fontsize=7, colors=[INK], inline_spacing=3)
        members = np.array(plane["members"])
        axes.plot(*np.vstack([members, members[:1]]).T, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        for i, (a, b) in enumerate(members):
            mark(axes, a, b, Look(0, "o", "-", True), 7)
            axes.annotate(f"member {i + 1}", (a, b), (6, 5), **_LABEL)
        if plane["average"] is not None:
            a, b = plane["average"]
            mark(axes, a, b, Look(2, "*", "-", True), 12)
            axes.annotate("average", (a, b), (8, -4), **_LABEL)
        axes.set_aspect("equal")
        axes.grid(False)
        axes.set_xlabel("distance of weights")
        axes.set_ylabel("distance of weights")
        svg = inline_svg(figure, name, title)
    rows = [
        *((f"member {i + 1}", a, b, None) for i, (a, b) in enumerate(plane["members"])),
        *([("average, projected", *plane["average"], None)] if plane["average"] is not None else []),
        *(("grid", a, b, z[j, i].item()) for j, b in enumerate(plane["y"]) for i, a in enumerate(plane["x"])),
    ]
    return Figure(name, title, svg, caption, ("point", "x", "y", f"{field}, {unit}"), tuple(rows))
