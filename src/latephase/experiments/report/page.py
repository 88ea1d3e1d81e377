"""The report of `train` and `compare`: every number of it is read from results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from latephase.experiments.json_file import read_json
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
    capital,
    caution,
    controls,
    families,
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
    throughput_table,
    validation_table,
)
from latephase.experiments.report.wording import wording


def write_report(results: Path, page: Path) -> None:
    """Write the page of a run folder, and beside it `csv/` and `tables.md`.

    Args:
        results: The results.json to read.
        page: The file to write.

    Raises:
        ExperimentError: If a file cannot be written.
    """
    write_document(report(read_json(results, "run the command again")), page)


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
        figure = differences_figure(setting, name, limits) or scores_figure(setting, wording(setting).main, name)
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
    for part in (_first, _controls, _members, _probabilities, _training, _samples):
        part(setting, prefix, section)
    return section.add(
        Part("Every number"),
        other_differences_table(setting),
        validation_table(setting),
        seeds_table(setting),
        cost_table(setting),
        Source("The recipe", yaml.safe_dump(setting["recipe"], sort_keys=False)),
    )


def _first(setting: dict[str, Any], prefix: str, section: Section) -> None:
    """The score that matters first."""
    words = wording(setting)
    section.add(Part(capital(words.score.name)))
    scores = scores_figure(setting, words.main, f"{prefix}{words.main}")
    against = differences_figure(setting, f"{prefix}differences")
    if against is None:
        section.add(Figures((scores,)))
        return
    notes = tuple(sentence for sentence in (families(setting), averaging(setting)) if sentence)
    section.add(Finding(headline(setting), (against, scores), notes))


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
    shown = [metric for metric in wording(setting).metrics[1:] if metric != "brier"]
    figures = (
        *(scores_figure(setting, metric, f"{prefix}{metric}") for metric in shown),
        reliability_figure(setting, f"{prefix}reliability"),
    )
    sentence = calibration(setting)
    section.add(Finding(sentence, figures) if sentence else Figures(figures))


def _training(setting: dict[str, Any], prefix: str, section: Section) -> None:
    section.add(Part("Training"), Figures((curves_figure(setting, f"{prefix}curves"),)))
    section.add(throughput_table(setting))


def _samples(setting: dict[str, Any], prefix: str, section: Section) -> None:
    """What models of text write; plain and late-phase training at once, the others on demand."""
    written = {name: m for name, m in setting["methods"].items() if m.get("sample")}
    if not written:
        return
    first = next(iter(written.values()))["sample"]
    section.add(
        Part("Samples"),
        Text(
            f"What each model of the first seed writes on from the same beginning of the test text, each character "
            f"drawn at temperature {first['temperature']:g} with seed {first['seed']}. A page of text tells such "
            "models apart poorly; the numbers above do."
        ),
        Source("The beginning that they are given", first["prompt"], open=True),
    )
    shown = ("base", wording(setting).late)
    for name, values in written.items():
        section.add(Source(f"Written by {values['label']}", values["sample"]["text"], open=name in shown))


def _setup(setting: dict[str, Any]) -> str:
    recipe, words, batches = setting["recipe"], wording(setting), setting["minibatches"]
    sizes, data, seeds = setting[words.samples], recipe["data"], len(setting["seeds"])
    of_text = words.samples == "characters"
    source = data["train"] or ("text that comes with Python" if of_text else data["name"])
    rows = f" \u00d7 {recipe['text']['length']} characters" if of_text else ""
    return (
        f"{source} · {sizes['train']:,} training, {sizes['validation']:,} validation and {sizes['test']:,} test "
        f"{words.samples}, {sizes['classes']} {'distinct' if of_text else 'classes'} · {recipe['model']['name']} · "
        f"{recipe['training']['epochs']} epochs, {batches['each_run']:,} minibatches of "
        f"{recipe['training']['batch_size']}{rows} · {seeds} seed{'s' if seeds > 1 else ''}"
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
