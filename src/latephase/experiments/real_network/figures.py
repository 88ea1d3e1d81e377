"""The figures: what the quadratic model predicts as lines, what was measured as dots."""

from __future__ import annotations

import re
from importlib import resources
from itertools import zip_longest
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes

from latephase.experiments.report.document import Figure
from latephase.experiments.report.plots import WIDTH, new_figure
from latephase.experiments.report.svg import INK, MUTED, PAPER, SERIES, inline_svg, style

_SERIES = {"sgd": 0, "k-batch": 4, "lr-over-k": 5, "additive": 2, "norm-head-mean": 3, "norm-head-sum": 6}
_MARKERS = {"sgd": "o", "k-batch": "v", "lr-over-k": "X", "additive": "D", "norm-head-mean": "s", "norm-head-sum": "^"}
_BARS = 2.0  # standard errors


def losses_figure(results: dict[str, Any]) -> Figure:
    """Loss against minibatches, a panel for each scheme.

    Args:
        results: The content of results.json.

    Returns:
        The figure.
    """
    schemes, counts = results["schemes"], results["counts"]
    columns = 2
    rows = -(-len(schemes) // columns)
    name, title = "loss-curves", "Training loss after the start, predicted and measured"
    with style():
        figure = matplotlib.figure.Figure(figsize=(1.6 * WIDTH, 0.3 + 1.75 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, entry in zip_longest(grid.flat, schemes.items()):
            if entry is None:
                axes.set_visible(False)
            else:
                _losses(axes, counts, *entry)
        figure.supxlabel("minibatches after the start", fontsize=9, color=MUTED)
        figure.supylabel("training loss of the averaged model", fontsize=9, color=MUTED)
        svg = inline_svg(figure, name, f"{title}. Loss against minibatches")
    replicas = results["setting"]["replicas"]
    caption = (
        f"Lines: expected loss of the quadratic model. Dots: mean of {replicas} runs of the real network with bars of"
        " two"
        " standard errors. All start from the same weights and see the same minibatches."
    )
    heads = ("scheme", "minibatches", "predicted", "measured", "standard error")
    numbers = tuple(
        (s["label"], count, predicted, loss["mean"], loss["se"])
        for s in schemes.values()
        for count, predicted, loss in zip(counts, s["predicted"], s["loss"], strict=True)
    )
    return Figure(name, title, svg, caption, heads, numbers)


def _losses(axes: Axes, counts: list[int], name: str, scheme: dict[str, Any]) -> None:
    colour = SERIES[_SERIES[name]]
    axes.plot(counts, scheme["predicted"], color=INK, linewidth=1.3)
    axes.errorbar(
        counts,
        [loss["mean"] for loss in scheme["loss"]],
        yerr=[_BARS * loss["se"] for loss in scheme["loss"]],
        fmt=_MARKERS[name],
        color=colour,
        markersize=3.8,
        elinewidth=1.0,
        capsize=1.5,
    )
    axes.set_title(scheme["label"], fontsize=8.5, color=INK, pad=3)


def directions_figure(results: dict[str, Any]) -> Figure:
    """Measured over predicted noise by curvature.

    Args:
        results: The content of results.json.

    Returns:
        The figure.
    """
    name, title = "directions", "Where the noise sits, direction by direction"
    chosen = {key: s for key, s in results["schemes"].items() if key in ("sgd", "k-batch", "lr-over-k", "additive")}
    numbers = []
    with style():
        figure, axes = new_figure(3.0)
        axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for key, scheme in chosen.items():
            there = [b for b in scheme["bins"] if b["predicted"] > 0 and b["curvature_low"] > 0]
            x = [(b["curvature_low"] * b["curvature_high"]) ** 0.5 for b in there]
            y = [b["measured"] / b["predicted"] for b in there]
            colour = SERIES[_SERIES[key]]
            face = colour if key != "k-batch" else PAPER
            axes.plot(
                x, y, color=colour, marker=_MARKERS[key], markerfacecolor=face, markersize=4.5, label=scheme["label"]
            )
            numbers += [
                (
                    scheme["label"],
                    b["directions"],
                    b["curvature_high"],
                    b["curvature_low"],
                    b["predicted"],
                    b["measured"],
                )
                for b in scheme["bins"]
            ]
        axes.set_xscale("log")
        axes.set_xlabel("curvature of the directions (middle of a group)")
        axes.set_ylabel("measured / predicted")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7.5, loc="best")
        svg = inline_svg(figure, name, f"{title}. Measured over predicted against curvature")
    caption = (
        "Variance of the averaged model over runs along the eigenvectors of the Hessian, times half the curvature,"
        " summed"
        " over groups of directions (5, 15, 40, 100, 240 and the rest) and divided by the prediction; second half of"
        " the"
        " runs. Groups of curvature 0 are left out of the drawing."
    )
    heads = ("scheme", "directions", "curvature from", "curvature to", "predicted", "measured")
    return Figure(name, title, svg, caption, heads, tuple(numbers))


def standalone(svg: str) -> str:
    """A figure of the page as a document of its own, with the page's colours.

    Args:
        svg: From a `Figure`.

    Returns:
        SVG for a light and a dark reader.
    """
    css = resources.files("latephase.experiments.report").joinpath("style.css").read_text(encoding="utf-8")
    blocks = re.findall(r"(@media \(prefers-color-scheme: dark\)\s*\{\s*)?:root\s*\{([^}]*)\}", css)
    variables = re.compile(r"--[\w-]+:\s*[^;]+;")
    light, dark = (
        " ".join(variables.findall(next(b for d, b in blocks if bool(d) is wanted))) for wanted in (False, True)
    )
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size is not None
    rules = (
        f"svg {{ {light} font-family: system-ui, sans-serif; background: var(--card); }}"
        f" @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )
    svg = svg.replace("<svg", f'<svg width="{size[1]}" height="{size[2]}"', 1)
    end = svg.index(">") + 1
    return f"{svg[:end]}<style>{rules}</style>{svg[end:]}"
