"""The page's part on the loss around one model: its Hessian, and random perturbations."""

from __future__ import annotations

from typing import Any

from latephase.experiments.evaluate.page_landscape import STATISTICS, view_of
from latephase.experiments.evaluate.seeds import Get, Methods, mean_text, seeds_note
from latephase.experiments.report.document import Figures, Finding, Part, Section, Table
from latephase.experiments.report.plots import curves, dots
from latephase.experiments.statistics import summarise


def add_flatness(methods: Methods, section: Section) -> None:
    """Add the Hessian and the perturbations, as far as they were asked for.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    if methods.with_(_flat("trace")):
        _add_hessian(methods, section)
    if methods.with_(view_of("perturbation")):
        _add_perturbation(methods, section)


def _flat(field: str) -> Get:
    return lambda run: None if run["flatness"] is None else run["flatness"][field]


def _add_hessian(methods: Methods, section: Section) -> None:
    section.add(Part("Flatness"))

    def largest(run: dict[str, Any]) -> float | None:
        values = (run["flatness"] or {}).get("eigenvalues")
        return values[0] if values else None

    first = methods.values(methods.with_(_flat("trace"))[0], lambda run: run["flatness"])[0]
    about = (
        f"Of the mean loss over {first['samples']:,} training images without augmentation, in eval mode (BatchNorm's "
        f"running statistics are constants).{seeds_note(methods, _flat('trace'))}"
    )
    single = "± one standard error over probes" if not methods.several_seeds else "mean over seeds ± one standard error"
    figures = [
        dots(
            f"{methods.prefix}trace",
            "Trace of the Hessian",
            f"{about} Bars: {single}.",
            methods.rows(_flat("trace"), own=_flat("trace_standard_error")),
            axis="trace",
            decimals=1,
            interval="mean ± standard error",
        )
    ]
    if methods.with_(largest):
        figures.append(
            dots(
                f"{methods.prefix}eigenvalue",
                "Largest eigenvalue of the Hessian",
                f"{about}",
                methods.rows(largest),
                axis="largest eigenvalue",
                interval="mean ± standard error",
            )
        )
    said = methods.compared(_flat("trace"), "trace of the Hessian", 1)
    notes = ("Under normalisation the Hessian changes with the scale of the weights though the function does not: "
             "compare models of one architecture trained alike, and see the random perturbations.",)  # fmt: skip
    section.add(Finding(said, tuple(figures), notes) if said else Figures(tuple(figures)))
    rows = []
    for m in methods.with_(_flat("trace")):
        error = methods.summary(m, _flat("trace_standard_error"))
        values = methods.values(m, _flat("eigenvalues"))
        count = min(map(len, values))
        tops = ", ".join(f"{summarise([v[i] for v in values])['mean']:.2f}" for i in range(count)) or "not converged"
        rows.append(
            (
                methods.label(m),
                mean_text(methods.summary(m, _flat("trace")), 2),
                mean_text(None if error is None else {**error, "se": None}, 2),
                tops,
                mean_text(methods.summary(m, _flat("loss")), 4),
            )
        )
    heads = ("method", "trace", "its error over probes", "largest eigenvalues", "training loss")
    section.add(Table("Hessian of the training loss", heads, tuple(rows), notes[0] if not said else ""))


def _add_perturbation(methods: Methods, section: Section) -> None:
    section.add(Part("Random perturbations"))
    view = view_of("perturbation")
    first = methods.values(methods.with_(view)[0], view)[0]
    sizes = [100 * size for size in first["sizes"]]

    def field(name: str) -> Get:
        return lambda run: None if view(run) is None else view(run)[name]

    spread = "over seeds" if methods.several_seeds else "over directions"
    about = (
        f"{first['draws']} random directions, each filter scaled to its own norm (Li et al., 2018). Bands: ± one "
        f"standard error {spread}. {STATISTICS[first['statistics']]}"
    )
    figures = []
    for name, label, factor, unit in (("loss", "training loss", 1.0, "nats"), ("error", "training error", 100.0, "%")):
        series = [
            methods.curve(m, sizes, field(name), field(f"{name}_standard_error"), factor) for m in methods.with_(view)
        ]
        figures.append(
            curves(
                f"{methods.prefix}perturbation-{name}",
                f"{label[:1].upper()}{label[1:]} under random perturbation",
                about if name == "loss" else "The same perturbations.",
                series,
                x="size, % of the weights' norm",
                y=f"{label}, {unit}",
                band="mean ± standard error",
            )
        )
    half = min(range(len(sizes)), key=lambda i: abs(sizes[i] - 20))

    def at_half(run: dict[str, Any]) -> float | None:
        values = field("loss")(run)
        return None if values is None else values[half] - values[0]

    said = methods.compared(
        at_half, f"rise of the training loss under a perturbation of {sizes[half]:.0f}%", 3, unit="nats"
    )
    section.add(Finding(said, tuple(figures)) if said else Figures(tuple(figures)))
