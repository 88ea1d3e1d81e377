"""The page's part on images of other sets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from latephase.experiments.evaluate.seeds import Get, Methods, mean_text
from latephase.experiments.report.document import Figure, Figures, Finding, Part, Section, Table
from latephase.experiments.report.frame import slug
from latephase.experiments.report.looks import Look
from latephase.experiments.report.plots import Dot, Series, curves, dots
from latephase.experiments.statistics import summarise

_NAMES = {
    "entropy": "entropy",
    "max_probability": "max. probability",
    "energy": "energy",
    "mutual_information": "mutual information",
}
_PARTS = {"model": "model", "ensemble": "members"}


def add_ood(methods: Methods, section: Section) -> None:
    """Add out-of-distribution detection; nothing if it was not asked for.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    sets = _sets(methods)
    if not sets:
        return
    section.add(Part("Other data"))
    figures = [_by_method(methods, name) for name in sets]
    first = next(iter(sets))
    sentence = methods.compared(own_detection(first), f"AUROC of the entropy on {first}", 2, 100.0, "points")
    section.add(Finding(sentence, tuple(figures)) if sentence else Figures(tuple(figures)))
    section.add(Figures((_by_score(methods, list(sets)), *(_entropies(methods, name) for name in sets))))
    section.add(_table(methods, sets), _full_table(methods, sets))


def detection(name: str, part: str, kind: str, field: str) -> Get:
    """What gives one number of a run's detections.

    Args:
        name: The set.
        part: `model` or `ensemble`.
        kind: The score.
        field: Such as `auroc`.

    Returns:
        The function.
    """

    def get(run: dict[str, Any]) -> float | None:
        found = None if run["ood"] is None else run["ood"][name][part]
        return None if found is None or kind not in found["scores"] else found["scores"][kind][field]

    return get


def own_detection(name: str, kind: str = "entropy", field: str = "auroc") -> Get:
    """A method's own detections, which are its members' where it predicts with them.

    Args:
        name: The set.
        kind: The score.
        field: Such as `auroc`.

    Returns:
        What gives a run's number.
    """
    model, members = detection(name, "model", kind, field), detection(name, "ensemble", kind, field)
    return lambda run: members(run) if model(run) is None else model(run)


def _sets(methods: Methods) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = methods.runs(methods.first)[0]["ood"] or {}
    return found


def _by_method(methods: Methods, name: str) -> Figure:
    members = detection(name, "ensemble", "entropy", "auroc")
    beside = methods.with_(members)
    own = own_detection(name, field="auroc_standard_error")
    spread = "± one standard error over seeds" if methods.several_seeds else "± one standard error over images (DeLong)"
    bar = " Upright bar: entropy of the members' mean." if beside else ""
    return dots(
        f"{methods.prefix}ood-{slug(name)}",
        f"Told from {name}",
        f"Area under the ROC curve of the predictive entropy, {spread}. 50% is chance.{bar}",
        methods.rows(own_detection(name), 100.0, members, own),
        axis="AUROC, %",
        decimals=1,
        interval="mean ± standard error",
        bar="members" if beside else "",
    )


def _by_score(methods: Methods, sets: list[str]) -> Figure:
    """One method's scores beside each other, on every set."""
    m, rows = methods.first, []
    for name in sets:
        for part, what in _PARTS.items():
            for kind, label in _NAMES.items():
                values = methods.values(m, detection(name, part, kind, "auroc"))
                if not values or (part == "ensemble") != (kind == "mutual_information"):
                    continue
                s = summarise(values)
                error = (
                    s["se"]
                    if s["se"] is not None
                    else (methods.values(m, detection(name, part, kind, "auroc_standard_error")) or [None])[0]
                )
                low, high = (None, None) if error is None else (100 * (s["mean"] - error), 100 * (s["mean"] + error))
                suffix = f" ({what})" if part == "ensemble" else ""
                rows.append(Dot(f"{name}: {label}{suffix}", 100 * s["mean"], low, high, methods.looks[m], name))
    return dots(
        f"{methods.prefix}ood-scores",
        f"Which score tells best: {methods.label(m)}",
        "Area under the ROC curve of each score, by set. 50% is chance.",
        rows,
        axis="AUROC, %",
        decimals=1,
        interval="mean ± standard error",
    )


def _entropies(methods: Methods, name: str) -> Figure:
    m = methods.first
    runs = [run["ood"][name]["model"] or run["ood"][name]["ensemble"] for run in methods.runs(m)]
    edges = runs[0]["entropy"]["edges"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]

    def mean(side: str) -> list[float]:
        return [100 * sum(column) / len(runs) for column in zip(*(r["entropy"][side] for r in runs), strict=True)]

    looks = {"inside": Look(methods.looks[m].series, "o", "-", True), "outside": Look(0, "s", (0, (3, 1.5)), False)}
    return curves(
        f"{methods.prefix}ood-entropy-{slug(name)}",
        f"Entropies: {methods.label(m)} on {name}",
        "Share of images by predictive entropy, from 0 (sure) to that of equal probabilities.",
        [
            Series("test images", middles, mean("inside"), looks["inside"]),
            Series(name, middles, mean("outside"), looks["outside"]),
        ],
        x="entropy, nats",
        y="images, %",
    )


def _table(methods: Methods, sets: dict[str, dict[str, Any]]) -> Table:
    heads = ("method", *(f"{name}: AUROC, %" for name in sets))
    rows = [
        (methods.label(m), *(mean_text(methods.summary(m, own_detection(name)), 2, 100.0) for name in sets))
        for m in methods.names
    ]
    changed = [f"{name}: {entry['changes']}" for name, entry in sets.items() if entry["changes"]]
    sizes = ", ".join(f"{name} ({entry['images']:,} images)" for name, entry in sets.items())
    note = (
        f"By predictive entropy. Sets: {sizes}. "
        + (f"To fit the model, {'; '.join(changed)}. " if changed else "")
        + "Independent pixels of noise are the easiest of sets and say little alone."
    )
    return Table("Images of other sets", heads, tuple(rows), note)


def _full_table(methods: Methods, sets: dict[str, dict[str, Any]]) -> Table:
    fields = {"auroc": "AUROC, %", "aupr_out": "AUPR out, %", "aupr_in": "AUPR in, %", "fpr95": "FPR95, %"}
    rows = []
    for m in methods.names:
        for name in sets:
            for part, what in _PARTS.items():
                for kind, label in _NAMES.items():
                    cells = [
                        mean_text(methods.summary(m, detection(name, part, kind, field)), 2, 100.0) for field in fields
                    ]
                    if any(cells):
                        rows.append((f"{methods.label(m)}, {name}, {what}: {label}", *cells))
    note = (
        "FPR95: images of the set that pass where 95% of the test images do. AUPR: average precision with the other "
        "set (out) or the test images (in) as positive; chance is that class's share of the images. Energy says "
        "nothing of log-probabilities, so ensembles show their members' mean."
    )
    return Table("Every score on every set", ("detector", *fields.values()), tuple(rows), note, folded=True)
