"""The report of `train` and `compare`: every number of it is read from results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from latephase.experiments.report.document import (
    Block,
    Document,
    Figure,
    Figures,
    Finding,
    Listing,
    Part,
    Section,
    Source,
    Table,
    Text,
)
from latephase.experiments.report.figures import (
    agreement_figure,
    contrasts_figure,
    curves_figure,
    differences_figure,
    differences_range,
    reliability_figure,
    scores_figure,
)
from latephase.experiments.report.files import write_document
from latephase.experiments.report.frame import slug, to_html
from latephase.experiments.report.numbers import duration, labelled
from latephase.experiments.report.provenance import facts, provenance
from latephase.experiments.report.sentences import (
    averaging,
    calibration,
    caution,
    controls,
    headline,
    members,
)
from latephase.experiments.report.tables import (
    contrasts_table,
    cost_table,
    members_table,
    other_differences_table,
    results_table,
    seeds_table,
    validation_table,
)


def write_report(results: Path, page: Path) -> None:
    """Write the page of a run folder, and beside it `csv/` and `tables.md`.

    Args:
        results: The results.json to read.
        page: The file to write.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    write_document(report(json.loads(results.read_text(encoding="utf-8"))), page)


def render(results: dict[str, Any]) -> str:
    """The page of a study.

    Args:
        results: The content of results.json.

    Returns:
        HTML without links to anything outside it.
    """
    return to_html(report(results))


def report(results: dict[str, Any]) -> Document:
    """The report of a study.

    Args:
        results: The content of results.json.

    Returns:
        The document.
    """
    settings = results["settings"]
    compared = results["kind"] == "compare"
    title = "Late-phase weights, compared" if compared else f"{settings[0]['title']}"
    opening: list[Block] = []
    if len(settings) > 1:
        opening.append(_overview(settings))
    elif compared:
        opening.append(Text(headline(settings[0]), "lead"))
    sections = [_methods(settings)] if compared else []
    sections += [_setting(setting, f"{slug(setting['name'])}-", compared, len(settings)) for setting in settings]
    sections.append(_made(results))
    return Document(title, facts(results), opening, sections)


def _overview(settings: list[dict[str, Any]]) -> Block:
    """The settings side by side, each under its sentence."""
    limits = differences_range(settings)
    figures = []
    for setting in settings:
        name = f"overview-{slug(setting['name'])}"
        figure = differences_figure(setting, name, limits) or scores_figure(setting, "accuracy", name)
        named = {"title": setting["title"], "caption": headline(setting)}
        figures.append(type(figure)(**{**vars(figure), **named}))
    return Figures(tuple(figures))


def _methods(settings: list[dict[str, Any]]) -> Section:
    """What is compared, in a line for each method; the settings may differ in theirs and in K."""
    methods = [method for setting in settings for method in setting["methods"].values()]
    lines = {labelled(m): m["summary"] for m in methods}
    text = (
        "With the same seed all methods see the same minibatches, and equally many: a round of K members counts as K."
    )
    if any(m.get("cost", 1) != 1 for m in methods):
        text += " Those marked with a cost train on that many times as many."
    return Section("What is compared").add(Text(text), Listing(tuple(lines.items())))


def _setting(setting: dict[str, Any], prefix: str, compared: bool, count: int) -> Section:
    section = Section(setting["title"] if compared else "Results")
    section.add(Text(_setup(setting), "facts"))
    if not compared:
        method = next(iter(setting["methods"].values()))
        section.add(Text(f"{method['label']}: {method['summary']}."))
    if count > 1 or not compared:
        section.add(Text(headline(setting), "lead"))
    section.add(results_table(setting))
    for part in (_accuracy, _controls, _members, _probabilities, _training):
        part(setting, prefix, section)
    return section.add(
        Part("Every number"),
        other_differences_table(setting),
        validation_table(setting),
        seeds_table(setting),
        cost_table(setting),
        Source("The recipe", yaml.safe_dump(setting["recipe"], sort_keys=False)),
    )


def _accuracy(setting: dict[str, Any], prefix: str, section: Section) -> None:
    section.add(Part("Accuracy"))
    scores = scores_figure(setting, "accuracy", f"{prefix}accuracy")
    against = differences_figure(setting, f"{prefix}differences")
    if against is None:
        section.add(Figures((scores,)))
        return
    swa = averaging(setting)
    section.add(Finding(headline(setting), (against, scores), (swa,) if swa else ()))


def _controls(setting: dict[str, Any], prefix: str, section: Section) -> None:
    figure = contrasts_figure(setting, f"{prefix}controls")
    _shown(section, "Controls", contrasts_table(setting), controls(setting), figure)


def _members(setting: dict[str, Any], prefix: str, section: Section) -> None:
    figure = agreement_figure(setting, f"{prefix}disagreement")
    _shown(section, "Members", members_table(setting), members(setting), figure)


def _shown(section: Section, title: str, table: Table | None, sentence: str | None, figure: Figure | None) -> None:
    """A part with a table, under its sentence and figure; nothing without the table."""
    if table is None:
        return
    section.add(Part(title))
    if sentence and figure:
        section.add(Finding(sentence, (figure,)))
    section.add(table)


def _probabilities(setting: dict[str, Any], prefix: str, section: Section) -> None:
    section.add(Part("Probabilities"))
    figures = (
        scores_figure(setting, "nll", f"{prefix}nll"),
        scores_figure(setting, "ece", f"{prefix}ece"),
        reliability_figure(setting, f"{prefix}reliability"),
    )
    sentence = calibration(setting)
    section.add(Finding(sentence, figures) if sentence else Figures(figures))


def _training(setting: dict[str, Any], prefix: str, section: Section) -> None:
    section.add(Part("Training"), Figures((curves_figure(setting, f"{prefix}curves"),)))


def _setup(setting: dict[str, Any]) -> str:
    images, batches, data = setting["images"], setting["minibatches"], setting["recipe"]["data"]
    seeds = len(setting["seeds"])
    return (
        f"{data['train'] or data['name']} · "
        f"{images['train']:,} training, {images['validation']:,} validation and {images['test']:,} test images, "
        f"{images['classes']} classes · {setting['recipe']['model']['name']} · "
        f"{setting['recipe']['training']['epochs']} epochs, {batches['each_run']:,} minibatches of "
        f"{setting['recipe']['training']['batch_size']} · {seeds} seed{'s' if seeds > 1 else ''}"
    )


def _made(results: dict[str, Any]) -> Section:
    legs = results["legs"]
    more = {
        "training": f"{duration(results['training_seconds'])} in all, in {results['workers']} "
        f"process{'es' if results['workers'] > 1 else ''} at a time",
        "this command": f"{duration(results['seconds'])}, in which it did {legs['trained_now']} of {legs['all']} "
        "stretches of training",
        "numbers": "results.json; every figure's as CSV in csv/, every table as Markdown in tables.md",
    }
    return Section("How this was made").add(provenance(results, more), Text(caution(results), "facts"))
