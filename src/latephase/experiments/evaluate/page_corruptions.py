"""The page's part on corrupted images."""

from __future__ import annotations

from typing import Any

from latephase.experiments.evaluate.seeds import BASE, Get, Methods, mean_text
from latephase.experiments.report.document import Figure, Figures, Finding, Part, Section, Table
from latephase.experiments.report.looks import group_of
from latephase.experiments.report.plots import Dot, curves, dots
from latephase.experiments.statistics import summarise


def add_corruptions(methods: Methods, section: Section) -> None:
    """Add errors on corrupted images; nothing if they were not asked for.

    Args:
        methods: The setting.
        section: The section to add to.
    """
    if not methods.setting["corruptions"]:
        return
    section.add(Part("Corruptions"))
    sentence = methods.compared(errors("mean"), "mean error on corrupted images", 2, 100.0, "points")
    figures = (_by_severity(methods), _by_kind(methods))
    section.add(Finding(sentence, figures) if sentence else Figures(figures), _table(methods))
    for m in methods.names:
        section.add(_kinds_table(methods, m))


def errors(field: str, part: str = "model") -> Get:
    """What gives a field of a run's corruption errors.

    Args:
        field: Such as `mean`.
        part: `model` or `ensemble`.

    Returns:
        The function.
    """
    return lambda run: (run["corruptions"] or {}).get(part, {}).get(field)


def _relative(field: str) -> Get:
    def get(run: dict[str, Any]) -> float | None:
        found = errors("relative")(run)
        return None if found is None else found[field]

    return get


def _at(kind: str) -> Get:
    def get(run: dict[str, Any]) -> float | None:
        table = errors("errors")(run)
        return None if table is None else sum(table[kind]) / len(table[kind])

    return get


def _first(methods: Methods) -> dict[str, Any]:
    found: dict[str, Any] = methods.runs(methods.first)[0]["corruptions"]["model"]
    return found


def _by_severity(methods: Methods) -> Figure:
    severities = _first(methods)["severities"]
    clean = all(value is not None for m in methods.names for value in map(errors("clean"), methods.runs(m)))

    def values(run: dict[str, Any]) -> list[float]:
        start = [errors("clean")(run)] if clean else []
        return [*start, *errors("by_severity")(run)]

    x = [0, *severities] if clean else severities
    series = [methods.curve(m, x, values, factor=100.0) for m in methods.names]
    band = " Bands: ± one standard error over seeds." if methods.several_seeds else ""
    return curves(
        f"{methods.prefix}corruption-severity",
        "Error by severity",
        f"Mean over all kinds; severity 0 is the images as they are.{band}",
        series,
        x="severity",
        y="error, %",
        band="mean ± standard error",
    )


def _by_kind(methods: Methods) -> Figure:
    m, base = methods.first, BASE if BASE in methods.names and methods.first != BASE else None
    rows = []
    for kind in _first(methods)["errors"]:
        s = summarise(methods.values(m, _at(kind)))
        middle, error = 100 * s["mean"], s["se"]
        low, high = (None, None) if error is None else (middle - 100 * error, middle + 100 * error)
        beside = 100 * summarise(methods.values(base, _at(kind)))["mean"] if base else None
        rows.append(Dot(kind.replace("_", " "), middle, low, high, methods.looks[m], bar=beside))
    bar = f" Upright bar: {methods.short(BASE)}." if base else ""
    return dots(
        f"{methods.prefix}corruption-kinds",
        f"Error by kind: {methods.label(m)}",
        f"Mean over severities.{' Bars: ± one standard error over seeds.' if methods.several_seeds else ''}{bar}",
        rows,
        axis="error, %",
        decimals=1,
        interval="mean ± standard error",
        bar="base" if base else "",
    )


def _table(methods: Methods) -> Table:
    relative = bool(methods.with_(errors("relative")))
    ensembles = bool(methods.with_(errors("mean", "ensemble")))
    heads = ["method", "clean error, %", "mean error, %"]
    heads += ["members' ensemble, %"] if ensembles else []
    fields = {"mce": "mCE, % of base", "relative_mce": "relative mCE, %"} if relative else {}
    fields = {field: head for field, head in fields.items() if methods.with_(_relative(field))}
    heads += fields.values()
    rows = []
    for m in methods.names:
        cells = [mean_text(methods.summary(m, errors(field)), 2, 100.0) for field in ("clean", "mean")]
        if ensembles:
            cells.append(mean_text(methods.summary(m, errors("mean", "ensemble")), 2, 100.0))
        cells += [mean_text(methods.summary(m, _relative(f)), 1, 100.0) for f in fields]
        rows.append((methods.label(m), *cells))
    about, first = methods.setting["corruptions"], _first(methods)
    kinds, severities = len(first["errors"]), ", ".join(map(str, first["severities"]))
    note = f"Source: {about['source']}; {_kinds(kinds)} at severities {severities}, {first['samples']:,} images each. "
    if about["source"].startswith("latephase"):
        note += "These are not the corruptions of CIFAR-10-C, even where a name is the same. "
    note += f"{about['note'][:1].upper()}{about['note'][1:]}. " if about["note"] else ""
    if relative:
        note += (
            "mCE: errors of each kind, summed over severities, relative to the base's, mean over kinds; relative mCE: "
            "the same of what is lost to the clean error, where the base loses from every kind."
        )
    ours = frozenset(methods.label(m) for m in methods.names if group_of(m).startswith("late-phase"))
    return Table("Corrupted images", tuple(heads), tuple(rows), note.strip(), ours=ours)


def _kinds_table(methods: Methods, method: str) -> Table:
    first = methods.runs(method)[0]["corruptions"]["model"]

    def at(kind: str, i: int) -> Get:
        return lambda run: errors("errors")(run)[kind][i]

    rows = tuple(
        (kind, *(mean_text(methods.summary(method, at(kind, i)), 2, 100.0) for i in range(len(first["severities"]))))
        for kind in first["errors"]
    )
    heads = ("error, %", *(f"severity {s}" for s in first["severities"]))
    return Table(f"Error by kind and severity: {methods.label(method)}", heads, rows, folded=True)


def _kinds(count: int) -> str:
    return f"{count} kind{'s' if count > 1 else ''}"
