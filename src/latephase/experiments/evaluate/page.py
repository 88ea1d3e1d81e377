"""The report of `latephase evaluate`: every number of it is read from evaluation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from latephase.experiments.evaluate.page_corruptions import add_corruptions
from latephase.experiments.evaluate.page_flatness import add_flatness
from latephase.experiments.evaluate.page_landscape import add_landscape
from latephase.experiments.evaluate.page_ood import add_ood
from latephase.experiments.evaluate.page_predictions import add_members, add_predictions, score
from latephase.experiments.evaluate.seeds import Methods, capital, mean_text
from latephase.experiments.json_file import read_json
from latephase.experiments.report.document import Document, Listing, Part, Section, Source, Table, Text
from latephase.experiments.report.files import write_document
from latephase.experiments.report.frame import slug
from latephase.experiments.report.numbers import duration, number
from latephase.experiments.report.provenance import facts, provenance


def write_report(results: Path, page: Path) -> None:
    """Write the page of an evaluation, and beside it `csv/` and `tables.md`.

    Args:
        results: The evaluation.json to read.
        page: The file to write.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    write_document(report(read_json(results, "run the command again")), page)


def report(results: dict[str, Any]) -> Document:
    """The report of an evaluation.

    Args:
        results: The content of evaluation.json.

    Returns:
        The document.
    """
    settings = results["settings"]
    title = f"Evaluation: {settings[0]['title']}" if len(settings) == 1 else "Evaluation of several settings"
    sections = []
    for setting in settings:
        methods = Methods(setting, f"{slug(setting['name'])}-" if len(settings) > 1 else "")
        sections.append(_section(methods))
    sections.append(_made(results))
    opening = [Text(lead(Methods(setting, ""), len(settings) == 1), "lead") for setting in settings]
    return Document(title, facts(results), opening, sections)


def lead(methods: Methods, alone: bool) -> str:
    """The one sentence on a setting.

    Args:
        methods: The setting.
        alone: Whether it is the only one, and so need not be named.

    Returns:
        The sentence.
    """
    title = methods.setting["title"]
    told = methods.compared(score("accuracy"), "test accuracy", 2, 100.0, "points")
    if told is not None:
        return told if alone else f"{title}: {told[:1].lower()}{told[1:]}"
    m = methods.first
    values = ", ".join(
        f"{what} {mean_text(methods.summary(m, get), decimals, factor)}{unit}"
        for what, get, decimals, factor, unit in (
            ("accuracy", score("accuracy"), 2, 100.0, "%"),
            ("NLL", score("nll"), 3, 1.0, ""),
            ("calibration error", score("ece"), 2, 100.0, "%"),
        )
    )
    said = f"{methods.short(m)} has {values}."
    return capital(said) if alone else f"{title}: {said}"


def _section(methods: Methods) -> Section:
    setting = methods.setting
    section = Section(setting["title"] if methods.prefix else "Results")
    images, seeds = setting["images"], len(setting["seeds"])
    data = setting["recipe"]["data"]
    section.add(
        Text(
            f"{data['train'] or data['name']} · {images['test']:,} test, {images['validation']:,} validation and "
            f"{images['train']:,} training images of {images['size']} pixels, {images['classes']} classes · "
            f"{setting['recipe']['model']['name']} · {seeds} seed{'s' if seeds > 1 else ''}",
            "facts",
        ),
        Listing(tuple((methods.label(m), setting["methods"][m]["summary"]) for m in methods.names)),
    )
    for part in (add_predictions, add_members, add_ood, add_corruptions, add_flatness, add_landscape):
        part(methods, section)
    return section.add(
        Part("Every number"),
        _runs_table(methods),
        Source("The recipe", yaml.safe_dump(setting["recipe"], sort_keys=False)),
    )


def _runs_table(methods: Methods) -> Table:
    rows = []
    for m in methods.names:
        for run in methods.runs(m):
            scores = run["predictions"]["model"]["scores"]
            cells = [
                number(f * scores[k], d) for k, f, d in (("accuracy", 100.0, 2), ("nll", 1.0, 3), ("ece", 100.0, 2))
            ]
            rows.append((f"{methods.label(m)}, seed {run['seed']}", *cells, number(scores["brier"], 4)))
    heads = ("run", "accuracy, %", "NLL", "ECE, %", "Brier")
    return Table("Every run", heads, tuple(rows), folded=True)


def _made(results: dict[str, Any]) -> Section:
    more = {
        "this command": duration(results["seconds"]),
        "evaluated": results["target"],
        "numbers": "evaluation.json; every figure's as CSV in csv/, every table as Markdown in tables.md",
    }
    several = any(len(setting["seeds"]) > 1 for setting in results["settings"])
    caution = (
        "Intervals are Student's t intervals at 95% of differences paired by seed; a star: it excludes zero. "
        "They are not corrected for their number: of twenty, one would exclude zero by chance alone. Standard errors "
        "are over seeds where there are several."
        if several
        else "There is one seed only, so nothing here says how much of a difference between methods is chance."
    )
    return Section("How this was made").add(provenance(results, more), Text(caution, "facts"))
