"""The page's part on predictions: scores, calibration, selective prediction, members."""

from __future__ import annotations

from typing import Any

from latephase.evaluation import bins_of_sums
from latephase.experiments.evaluate.seeds import BASE, Get, Methods, capital, interval_text, mean_text
from latephase.experiments.report.diagrams import Reliability, disagreement, reliability
from latephase.experiments.report.document import Figure, Figures, Finding, Part, Section, Table, Text
from latephase.experiments.report.looks import group_of
from latephase.experiments.report.numbers import MINUS, number
from latephase.experiments.report.plots import Dot, curves, dots
from latephase.experiments.statistics import summarise

# Score, what it is called, its factor and its decimals.
SCORES = (
    ("accuracy", "accuracy, %", 100.0, 2),
    ("nll", "NLL", 1.0, 3),
    ("ece", "ECE, %", 100.0, 2),
    ("brier", "Brier", 1.0, 4),
)


def add_predictions(methods: Methods, section: Section) -> None:
    """Add scores, calibration and selective prediction of every method.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    section.add(Part("Predictions"), _table(methods))
    accuracy, nll, scaled = score("accuracy"), score("nll"), score("nll", "scaled")
    figure = _dots(methods, "accuracy", "Accuracy", accuracy, "test accuracy, %", 100.0, 2, "Higher is better.")
    swarm = _dots(
        methods,
        "nll",
        "Negative log-likelihood",
        nll,
        "test NLL, nats",
        1.0,
        3,
        "Lower is better. Upright bar: after temperature scaling." if methods.with_(scaled) else "Lower is better.",
        scaled,
    )
    said = methods.compared(accuracy, "test accuracy", 2, 100.0, "points")
    section.add(Finding(said, (figure, swarm)) if said else Figures((figure, swarm)))
    section.add(Part("Calibration"))
    after = methods.compared(scaled, "NLL after temperature scaling", 3, unit="nats")
    before = methods.compared(score("ece"), "calibration error", 2, 100.0, "points")
    notes = (before,) if before and after else ()
    diagram = _reliability(methods)
    section.add(Finding(after or before or "", (diagram,), notes) if after or before else Figures((diagram,)))
    section.add(_no_temperature(methods))
    section.add(Part("Selective prediction"))
    aurc = methods.compared(risk("aurc"), "area under the risk-coverage curve", 3, 100.0, "points")
    figure = _risk_coverage(methods)
    section.add(Finding(aurc, (figure,)) if aurc else Figures((figure,)))


def score(metric: str, kind: str = "scores", part: str = "model") -> Get:
    """What gives a score of a run.

    Args:
        metric: `accuracy`, `nll`, `ece` or `brier`.
        kind: `scores`, or `scaled` for those after temperature scaling.
        part: `model` or `ensemble`.

    Returns:
        The function.
    """

    def get(run: dict[str, Any]) -> float | None:
        found = run["predictions"][part]
        return None if found is None or found[kind] is None else float(found[kind][metric])

    return get


def risk(field: str, part: str = "model") -> Get:
    """What gives a field of a run's risk-coverage curve.

    Args:
        field: Such as `aurc`.
        part: `model` or `ensemble`.

    Returns:
        The function.
    """
    return lambda run: None if run["predictions"][part] is None else run["predictions"][part]["risk_coverage"][field]


def _temperature(run: dict[str, Any]) -> float | None:
    fitted = run["predictions"]["model"]["temperature"]
    return None if fitted is None else float(fitted["temperature"])


def _table(methods: Methods) -> Table:
    compared = BASE in methods.names and methods.several_seeds and len(methods.names) > 1
    heads = ["method", "accuracy, %", *([f"{MINUS} plain SGD, points"] if compared else []), "NLL", "NLL scaled", "T"]
    heads += ["ECE, %", "Brier", "AURC, %"]
    rows = []
    for m in methods.names:
        cells = [methods.label(m), mean_text(methods.summary(m, score("accuracy")), 2, 100.0)]
        if compared:
            cells.append(interval_text(methods.against_base(m, score("accuracy")), 2, 100.0))
        cells += [
            mean_text(methods.summary(m, score("nll")), 3),
            mean_text(methods.summary(m, score("nll", "scaled")), 3) or "none",
            mean_text(methods.summary(m, _temperature), 2) or "none",
            mean_text(methods.summary(m, score("ece")), 2, 100.0),
            mean_text(methods.summary(m, score("brier")), 4),
            mean_text(methods.summary(m, risk("aurc")), 2, 100.0),
        ]
        rows.append(tuple(cells))
    note = (
        f"On the test images{', mean ± standard error over seeds' if methods.several_seeds else ''}. NLL scaled: after "
        "division of the logits by a temperature T that was fitted on the validation images. AURC: mean error over all "
        "coverages. "
    )
    note += "In brackets 95% intervals of differences paired by seed; a star: it excludes zero." if compared else ""
    ours = frozenset(methods.label(m) for m in methods.names if group_of(m).startswith("late-phase"))
    return Table("Test scores", tuple(heads), tuple(rows), note.strip(), ours=ours)


def _no_temperature(methods: Methods) -> Text | None:
    reasons: dict[str, str] = {}
    for m in methods.names:
        for run in methods.runs(m):
            for part, reason in run["predictions"]["no_temperature"].items():
                if part in ("all", "model", "ensemble"):
                    reasons.setdefault(reason, methods.label(m))
    if not reasons:
        return None
    said = "; ".join(f"{reason} (first in {label})" for reason, label in reasons.items())
    return Text(f"No temperature could be fitted everywhere: {said}.", "note")


def _dots(
    methods: Methods,
    name: str,
    title: str,
    get: Get,
    axis: str,
    factor: float,
    decimals: int,
    note: str,
    bar: Get | None = None,
) -> Figure:
    spread = "Mean over seeds ± one standard error. " if methods.several_seeds else ""
    return dots(
        f"{methods.prefix}{name}",
        title,
        f"{spread}{note}",
        methods.rows(get, factor, bar),
        axis=axis,
        decimals=decimals,
        interval="mean ± standard error",
        bar="scaled" if bar is not None else "",
    )


def _reliability(methods: Methods) -> Figure:
    panels = []
    for m in methods.names:
        sums = methods.values(m, lambda run: run["predictions"]["model"]["reliability"])
        total = {key: [sum(column) for column in zip(*(s[key] for s in sums), strict=True)] for key in sums[0]}
        panels.append(Reliability(methods.label(m), bins_of_sums(**total), methods.looks[m]))
    note = "All seeds together; before temperature scaling." if methods.several_seeds else "Before temperature scaling."
    return reliability(f"{methods.prefix}reliability", "Reliability", panels, note)


def _risk_coverage(methods: Methods) -> Figure:
    series = []
    for m in methods.names:
        x = methods.runs(m)[0]["predictions"]["model"]["risk_coverage"]["coverage"]
        series.append(methods.curve(m, [100 * c for c in x], risk("risk"), factor=100.0))
    band = " Bands: ± one standard error over seeds." if methods.several_seeds else ""
    return curves(
        f"{methods.prefix}risk-coverage",
        "Risk and coverage",
        f"Error among the predictions that the model is surest of. Lower is better.{band}",
        series,
        x="coverage, %",
        y="error, %",
        band="mean ± standard error",
    )


def add_members(methods: Methods, section: Section) -> None:
    """Add how the members, their ensemble and the one model compare; nothing if no method has members.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    having = methods.with_(lambda run: run["predictions"]["members"])
    if not having:
        return
    section.add(Part("Members"))
    chosen = methods.first if methods.first in having else having[-1]
    differences = [
        a - b
        for a, b in ((score("accuracy")(run), score("accuracy", part="ensemble")(run)) for run in methods.runs(chosen))
    ]
    stands = summarise(differences)
    spread = "" if stands["se"] is None else f" ± {number(100 * stands['se'], 2)} (standard error over seeds)"
    name = methods.short(chosen)
    sentence = (
        f"{capital(name)}: its own prediction stands at {number(100 * stands['mean'], 2, signed=True)}"
        f"{spread} points of accuracy from the ensemble of its members."
    )
    figures = [_members_figure(methods, chosen)]
    matrix = _matrix(methods, chosen)
    if matrix is not None:
        figures.append(matrix)
    section.add(Finding(sentence, tuple(figures)), _members_table(methods, having))


def _members_figure(methods: Methods, method: str) -> Figure:
    runs = methods.runs(method)
    count = len(runs[0]["predictions"]["members"])
    rows = []

    def row(label: str, values: list[float], group: str, filled: bool) -> Dot:
        s = summarise(values)
        middle, error = 100 * s["mean"], s["se"]
        low, high = (None, None) if error is None else (middle - 100 * error, middle + 100 * error)
        look = methods.looks[method]
        return Dot(label, middle, low, high, type(look)(look.series, look.marker, look.dashes, filled), group)

    rows.append(row("own prediction", [score("accuracy")(r) for r in runs], "own", True))
    rows.append(row("ensemble", [score("accuracy", part="ensemble")(r) for r in runs], "own", True))
    for k in range(count):
        values = [r["predictions"]["members"][k]["scores"]["accuracy"] for r in runs]
        rows.append(row(f"member {k + 1}", values, "members", False))
    spread = " Mean over seeds ± one standard error." if len(runs) > 1 else ""
    return dots(
        f"{methods.prefix}members",
        f"Accuracy of the members: {methods.label(method)}",
        f"Hollow: each member alone. Ensemble: the mean of their probabilities.{spread}",
        rows,
        axis="test accuracy, %",
        interval="mean ± standard error",
    )


def _matrix(methods: Methods, method: str) -> Figure | None:
    matrices = methods.values(method, lambda run: run["predictions"]["comparison"])
    if not matrices or len(matrices[0]["disagreement"]) < 2:
        return None
    rows = zip(*(m["disagreement"] for m in matrices), strict=True)
    mean = [[sum(cell) / len(matrices) for cell in zip(*row, strict=True)] for row in rows]
    return disagreement(
        f"{methods.prefix}disagreement",
        "How often two members disagree",
        f"{methods.label(method)}: percent of the test images on which two of the {len(mean)} members predict "
        "different classes.",
        mean,
    )


def _members_table(methods: Methods, having: list[str]) -> Table:
    heads = ("predictor", *(head for _, head, _, _ in SCORES), "NLL scaled", "AURC, %")
    rows = []
    for m in having:
        for part, what in (("model", "own prediction"), ("ensemble", "ensemble")):
            cells = [mean_text(methods.summary(m, score(k, part=part)), d, f) for k, _, f, d in SCORES]
            cells.append(mean_text(methods.summary(m, score("nll", "scaled", part)), 3) or "none")
            rows.append(
                (f"{methods.label(m)}: {what}", *cells, mean_text(methods.summary(m, risk("aurc", part)), 2, 100))
            )
        runs = methods.runs(m)
        each = [
            mean_text(summarise([_mean([p["scores"][k] for p in r["predictions"]["members"]]) for r in runs]), d, f)
            for k, _, f, d in SCORES
        ]
        areas = summarise([_mean([p["risk_coverage"]["aurc"] for p in r["predictions"]["members"]]) for r in runs])
        scaled = [[p["scaled"]["nll"] for p in r["predictions"]["members"] if p["scaled"]] for r in runs]
        nll = mean_text(summarise([_mean(s) for s in scaled if s]), 3) if all(scaled) else "none"
        rows.append((f"{methods.label(m)}: mean member", *each, nll, mean_text(areas, 2, 100.0)))
        pairs = [_minimum_maximum(r) for r in runs]
        span = [f"{100 * summarise([p[i] for p in pairs])['mean']:.2f}" for i in (0, 1)]
        rows.append((f"{methods.label(m)}: worst to best member", " to ".join(span), "", "", "", "", ""))
    note = "Ensemble: the mean of the members' probabilities. Each member's scores are in evaluation.json."
    return Table("The prediction and its members", heads, tuple(rows), note)


def _minimum_maximum(run: dict[str, Any]) -> tuple[float, float]:
    accuracies = [p["scores"]["accuracy"] for p in run["predictions"]["members"]]
    return min(accuracies), max(accuracies)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
