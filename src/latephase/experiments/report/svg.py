"""matplotlib figures as inline SVG whose colours and typeface are the page's own."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Stand-ins that matplotlib draws with; each becomes a CSS variable, so one figure serves a light and a dark page.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#fefefe"
SERIES = tuple(f"#11000{i + 1}" for i in range(8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card"} | {
    colour: f"series-{i}" for i, colour in enumerate(SERIES)
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for a figure of the report, inside the block."""
    settings: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": MUTED,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.unicode_minus": True,
        "figure.facecolor": "none",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "latephase",
        "text.color": INK,
        "xtick.color": MUTED,
        "xtick.labelsize": 8.5,
        "ytick.color": MUTED,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with mpl.rc_context(settings):
        yield


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element to put into a page.

    Args:
        figure: Drawn inside `style()`.
        name: Prefix that keeps the ids of the page's figures apart.
        label: What the figure shows, for those who do not see it.

    Returns:
        The element, the same for the same figure.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width = re.search(r'<svg[^>]*?width="([\d.]+)pt"', text)
    assert width is not None
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    pixels = float(width[1]) * 96 / 72
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}" style="max-width:{pixels:.0f}px"', 1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
