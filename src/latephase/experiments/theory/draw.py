"""Panels as SVG: small enough for a phone, distinct in black and white, and in the page's colours."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from latephase.experiments.theory.panel import Curve, Panel

INK, GRID, PAPER = "#1b1b1b", "#d5d5d5", "#fefefe"
# Okabe and Ito's colours, which most colour-blind readers tell apart; for the page, name -> (light, dark).
BLUE, RED, GREEN, PINK, GREY = "#0072b2", "#d55e00", "#00795a", "#b0527f", "#767676"
PAGE_COLOURS = {
    "ink": (INK, "#e8e8e8"),
    "grid": (GRID, "#3a3f45"),
    "paper": (PAPER, "#15181c"),
    "blue": (BLUE, "#5cb6ea"),
    "red": (RED, "#ff8a3d"),
    "green": (GREEN, "#34c79a"),
    "pink": (PINK, "#e59cc0"),
    "grey": (GREY, "#9aa0a6"),
}
# In black and white the marker tells the members apart, the line's pattern what is drawn of them.
_MEMBERS = {1: (INK, ""), 2: (BLUE, "o"), 5: (RED, "s"), 10: (GREEN, "^"), 20: (PINK, "D")}
_SPARE = [(GREY, "v"), (BLUE, "P"), (RED, "X"), (GREEN, "<"), (PINK, ">")]
_PATTERNS = {"": "-", "line": "-", "members": (0, (5, 2)), "alternative": (0, (1, 1.4))}
_OTHERS: dict[str, dict[str, Any]] = {
    "sgd": {"color": INK, "linestyle": "-", "linewidth": 1.8},
    "annealed": {"color": INK, "linestyle": (0, (5, 2)), "marker": "x", "linewidth": 1.5},
    "ema": {"color": GREY, "linestyle": (0, (6, 1.5, 1, 1.5))},
    "lookahead": {"color": GREY, "linestyle": (0, (1, 1.2))},
    "swa": {"color": PINK, "linestyle": (0, (6, 1.5, 1, 1.5)), "marker": "D"},
    "limit": {"color": GREY, "linestyle": (0, (1, 2)), "linewidth": 1.0},
}
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "mathtext.fontset": "dejavusans",
    "axes.facecolor": PAPER,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.2,
    "svg.hashsalt": "latephase",
    "svg.fonttype": "path",
}
_SIZE = (4.0, 3.75)


def look(members: int, kind: str = "") -> str:
    """Name of the look of K members.

    Args:
        members: K; 1 is plain SGD.
        kind: Empty for the averaged model, `members` for the mean member, `alternative` for a variant,
            `dots` for simulated values, `open` for hollow marks.

    Returns:
        The name that `Curve.look` takes.
    """
    return f"K{members}/{kind}"


def svg(panel: Panel) -> str:
    """Draw a panel.

    Args:
        panel: The numbers.

    Returns:
        A standalone SVG document, the same bytes for the same numbers.
    """
    with mpl.rc_context(_STYLE):
        canvas = Canvas(figsize=_SIZE, layout="constrained", facecolor=PAPER)
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        _draw(axes, panel)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def for_page(document: str) -> str:
    """Turn a document of `svg` into an element that follows the page's colours and width.

    Args:
        document: A standalone SVG document.

    Returns:
        The `<svg>` element alone; its colours are CSS variables named like `PAGE_COLOURS`.
    """
    element = document[document.index("<svg") :]
    for name, (light, _) in PAGE_COLOURS.items():
        element = element.replace(light, f"var(--{name})")
    return element


def _draw(axes: Any, panel: Panel) -> None:
    for position in panel.marks:
        axes.axvline(position, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    for curve in panel.curves:
        style, legend = _style(curve)
        if curve.error is None:
            axes.plot(curve.x, curve.y, **style)
        else:
            axes.errorbar(curve.x, curve.y, yerr=curve.error, elinewidth=1.0, capsize=2.0, **style)
        if curve.legend:
            axes.plot([], [], label=curve.label, **legend)
    axes.set_xscale("log" if panel.x_log else "linear")
    axes.set_yscale("log" if panel.y_log else "linear")
    for axis, log in ((axes.xaxis, panel.x_log), (axes.yaxis, panel.y_log)):
        if log:
            _label_log(axis)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_title(panel.title)
    axes.grid(True, which="major")
    axes.set_axisbelow(True)
    columns = 2 if max(len(curve.label) for curve in panel.curves if curve.legend) > 12 else 3
    axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=2.8, columnspacing=1.2)


def _label_log(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers: powers of ten, and 2, 3 and 5 between few of them."""
    low, high = axis.get_view_interval()
    short = high / low < 60
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: _number(value) if short and _is_round(value) else ""))


def _number(value: float) -> str:
    return f"{value:g}" if 1e-4 < value < 9e4 else f"$10^{{{np.log10(value):.0f}}}$"


def _is_round(value: float) -> bool:
    return round(value / 10 ** np.floor(np.log10(value) + 1e-9)) in (2, 3, 5)


def _style(curve: Curve) -> tuple[dict[str, Any], dict[str, Any]]:
    """Matplotlib's arguments for a curve, and for its entry in the legend."""
    if curve.look in _OTHERS:
        style = dict(_OTHERS[curve.look])
    else:
        number, kind = curve.look[1:].split("/")
        known = int(number) in _MEMBERS
        colour, marker = _MEMBERS[int(number)] if known else _SPARE[int(number) % len(_SPARE)]
        style = {"color": colour, "marker": marker, "linestyle": _PATTERNS.get(kind, "none")}
        if kind == "open":
            style |= {"markerfacecolor": PAPER, "markersize": 7.0, "markeredgewidth": 1.4}
        elif kind == "dots":
            style |= {"markersize": 5.0}
        elif kind == "alternative":
            style |= {"marker": ""}
    legend = dict(style)
    if curve.look.endswith("/line"):
        style["marker"] = ""
    if style.get("marker") and style["linestyle"] != "none":
        # Every curve carries about seven of its marks, wherever its points lie.
        style["markevery"] = max(1, -(-len(curve.x) // 7))
    return style, legend
