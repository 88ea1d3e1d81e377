"""The page's part on the loss between the members: lines, the plane, layers."""

from __future__ import annotations

from typing import Any

from latephase.experiments.evaluate.plane_figure import plane_figure
from latephase.experiments.evaluate.seeds import Get, Methods, capital, mean_text, seeds_note
from latephase.experiments.report.document import Figure, Figures, Finding, Part, Section, Table, Text
from latephase.experiments.report.plots import Dot, curves, dots
from latephase.experiments.statistics import summarise

STATISTICS = {
    "recomputed": "BatchNorm's statistics are recomputed at every point, from the same augmented training minibatches.",
    "stored": "BatchNorm's statistics are the stored ones, interpolated as the weights are.",
    "none": "The model has no BatchNorm statistics.",
}


def add_landscape(methods: Methods, section: Section) -> None:
    """Add the views of the members that were asked for.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    for name, add in (("lines", _add_lines), ("plane", _add_plane), ("layers", _add_layers)):
        if methods.with_(view_of(name)):
            add(methods, section)


def view_of(view: str) -> Get:
    """What gives a view of a run's landscape.

    Args:
        view: Such as `lines`.

    Returns:
        The function.
    """
    return lambda run: None if run["landscape"] is None else run["landscape"][view]


def _add_lines(methods: Methods, section: Section) -> None:
    section.add(Part("Between the members"))
    view = view_of("lines")
    having = methods.with_(view)
    first = methods.values(having[0], view)[0]["train"]
    stations = tuple(enumerate(first["stations"]))

    def field(on: str, name: str) -> Get:
        return lambda run: None if view(run) is None else view(run)[on][name]

    about = (
        f"From member 1 over the averaged model to member 2, in a straight line each. {STATISTICS[first['statistics']]}"
    )
    figures = []
    for on, name, label, factor, unit in (
        ("train", "loss", "training loss", 1.0, "nats"),
        ("test", "error", "test error", 100.0, "%"),
    ):
        figures.append(
            curves(
                f"{methods.prefix}line-{on}-{name}",
                f"{label[:1].upper()}{label[1:]} between members",
                about if on == "train" else f"The same line on {_test_samples(methods):,} test images.",
                [methods.curve(m, first["positions"], field(on, name), factor=factor) for m in having],
                x="weights",
                y=f"{label}, {unit}",
                band="mean ± standard error",
                ticks=stations,
            )
        )
    section.add(Finding(_barrier_sentence(methods, having), tuple(figures)))
    rows = [_barriers(methods, m) for m in having]
    heads = ("method", "barrier of the loss", "barrier of the error, %", "without the average: loss", "distance")
    note = (
        "Height of the highest point above the straight line between the ends, the larger one of the two pieces, on "
        "training images; 0 is no barrier. Without the average: straight from member to member. Distance: Euclidean, "
        f"from member 1 to the averaged model.{seeds_note(methods, view)}"
    )
    section.add(Table("Barriers between members", heads, tuple(rows), note))


def _test_samples(methods: Methods) -> int:
    landscapes = (run["landscape"] for method in methods.names for run in methods.runs(method))
    return next(int(found["test_samples"]) for found in landscapes if found is not None)


def _barrier_sentence(methods: Methods, having: list[str]) -> str:
    m = methods.first if methods.first in having else having[-1]
    highest = max(s["loss_barrier"] for v in methods.values(m, view_of("lines")) for s in v["train"]["segments"])
    ends = "over all seeds the highest" if methods.several_seeds else "the highest"
    name = methods.short(m)
    name = capital(name)
    if highest == 0:
        return f"{name}: no barrier of the training loss on this grid between its members and the average."
    return f"{name}: {ends} barrier of the training loss between members and average is {highest:.4f} nats."


def _barriers(methods: Methods, method: str) -> tuple[str, ...]:
    views = methods.values(method, view_of("lines"))

    def highest(field: str) -> list[float]:
        return [max(s[field] for s in v["train"]["segments"]) for v in views]

    direct = [v["direct"]["segments"][0]["loss_barrier"] for v in views]
    lengths = [v["train"]["segments"][0]["length"] for v in views]
    return (
        methods.label(method),
        mean_text(summarise(highest("loss_barrier")), 4),
        mean_text(summarise(highest("error_barrier")), 2, 100.0),
        mean_text(summarise(direct), 4),
        mean_text(summarise(lengths), 2),
    )


def _add_plane(methods: Methods, section: Section) -> None:
    having = methods.with_(view_of("plane"))
    m = methods.first if methods.first in having else having[-1]
    run = next(run for run in methods.runs(m) if view_of("plane")(run) is not None)
    found = run["landscape"]["plane"]
    about = (
        f"The plane through the first three members of {methods.label(m)}, seed {run['seed']}. The star: the averaged "
        f"model's projection; the model lies {found['average_distance']:.2f} off the plane. Lengths are Euclidean "
        f"distances of weights. {STATISTICS[found['statistics']]}"
    )
    title = "on the plane of three members"
    loss = plane_figure(f"{methods.prefix}plane-loss", f"Training loss {title}", about, found, "loss")
    error = plane_figure(f"{methods.prefix}plane-error", f"Training error {title}", "The same plane.", found, "error")
    section.add(Part("The plane of three members"), Figures((loss, error)))


def _add_layers(methods: Methods, section: Section) -> None:
    having = methods.with_(view_of("layers"))
    m = methods.first if methods.first in having else having[-1]
    views = methods.values(m, view_of("layers"))
    section.add(
        Part("Layer by layer"),
        Figures(tuple(f for f in (_distances(methods, m, views), _disagreements(methods, m, views)) if f)),
        Text(
            "Layers that members share are not shown: they do not differ. Distances of normalised weights are not "
            "comparable between layers. Parts of the disagreement do not add up to the whole, as layers interact.",
            "note",
        ),
    )


def _row(label: str, values: list[float], methods: Methods, method: str, group: str = "") -> Dot:
    s = summarise(values)
    low, high = (None, None) if s["se"] is None else (s["mean"] - s["se"], s["mean"] + s["se"])
    return Dot(label, s["mean"], low, high, methods.looks[method], group)


def _distances(methods: Methods, method: str, views: list[dict[str, Any]]) -> Figure | None:
    names = [d["layer"] for d in views[0]["distances"] if d["pairwise"] > 0]
    rows = []
    for name in names:
        layers = [next(d for d in v["distances"] if d["layer"] == name) for v in views]
        if all(layer["relative"] is not None for layer in layers):
            rows.append(_row(name or "model", [100 * layer["relative"] for layer in layers], methods, method))
    if not rows:
        return None
    return dots(
        f"{methods.prefix}layer-distances",
        f"How far the members are from their average: {methods.label(method)}",
        "Root mean square of the members' distances from the averaged model, relative to the layer's norm.",
        rows,
        axis="distance, % of the layer's norm",
        decimals=1,
        interval="mean ± standard error",
    )


def _disagreements(methods: Methods, method: str, views: list[dict[str, Any]]) -> Figure:
    rows = []
    for i, entry in enumerate(views[0]["disagreement"]):
        values = [
            100 * sum(v["disagreement"][i]["disagreement"]) / len(v["disagreement"][i]["disagreement"]) for v in views
        ]
        whole = entry["whole"]
        rows.append(
            _row("whole member" if whole else entry["layer"], values, methods, method, "whole" if whole else "")
        )
    return dots(
        f"{methods.prefix}layer-disagreement",
        f"Predictions that one layer of a member changes: {methods.label(method)}",
        f"Share of {_test_samples(methods):,} test images that the averaged model puts into another class once one "
        "layer is a member's, mean over members.",
        rows,
        axis="changed predictions, %",
        interval="mean ± standard error",
    )
