"""report.html: one self-contained page, every number of it read from results.json."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from latephase.experiments.checkpoints import write_text
from latephase.experiments.report.figures import (
    agreement_figure,
    curves_figure,
    differences_figure,
    differences_range,
    reliability_figure,
    scores_figure,
)
from latephase.experiments.report.numbers import duration
from latephase.experiments.report.sentences import caution, findings, headline
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
    """Write the page of a run folder.

    Args:
        results: The results.json to read.
        page: The file to write.

    Raises:
        ExperimentError: If the page cannot be written.
    """
    write_text(page, render(json.loads(results.read_text(encoding="utf-8"))))


def render(results: dict[str, Any]) -> str:
    """The page of a study.

    Args:
        results: The content of results.json.

    Returns:
        HTML without links to anything outside it.
    """
    settings = results["settings"]
    compared = results["kind"] == "compare"
    title = "Late-phase weights, compared" if compared else f"{settings[0]['title']}"
    style = resources.files("latephase.experiments.report").joinpath("style.css").read_text(encoding="utf-8")
    parts = [f"<h1>{escape(title)}</h1>", f"<p class=facts>{_facts(results)}</p>"]
    if len(settings) > 1:
        parts.append(_overview(settings))
    parts.append(_methods(settings))
    parts += [_setting(setting, i, compared) for i, setting in enumerate(settings)]
    parts.append(_provenance(results))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _facts(results: dict[str, Any]) -> str:
    commit = f"commit <code>{escape(results['commit'])}</code>" if results["commit"] else "no commit"
    return f"{escape(results['date'])} · {escape(results['device'])} · {commit}"


def _overview(settings: list[dict[str, Any]]) -> str:
    """The settings side by side, each with its sentence."""
    cards = []
    limits = differences_range(settings)
    for i, setting in enumerate(settings):
        figure = differences_figure(setting, f"overview{i}", limits) or scores_figure(
            setting, "accuracy", f"overview{i}"
        )
        cards.append(_card(setting["title"], figure, headline(setting)))
    return f"<div class=grid>{''.join(cards)}</div>"


def _setting(setting: dict[str, Any], i: int, compared: bool) -> str:
    images, batches = setting["images"], setting["minibatches"]
    seeds = len(setting["seeds"])
    data = setting["recipe"]["data"]
    facts = (
        f"{escape(data['train'] or data['name'])} · "
        f"{images['train']:,} training, {images['validation']:,} validation and {images['test']:,} test images, "
        f"{images['classes']} classes · {escape(setting['recipe']['model']['name'])} · "
        f"{setting['recipe']['training']['epochs']} epochs, {batches['each_run']:,} minibatches of "
        f"{setting['recipe']['training']['batch_size']} · {seeds} seed{'s' if seeds > 1 else ''}"
    )
    heading = f"<h2>{escape(setting['title'])}</h2>" if compared else ""
    points = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(setting))
    tables = [
        ("Late-phase against its controls", contrasts_table(setting)),
        ("The averaged model and its members", members_table(setting)),
        ("Differences in the other scores", other_differences_table(setting)),
    ]
    folded = [
        ("Scores on the validation images", validation_table(setting)),
        ("Every run", seeds_table(setting)),
        ("What it cost", _cost_note(setting) + cost_table(setting)),
        ("The recipe", f"<pre>{escape(yaml.safe_dump(setting['recipe'], sort_keys=False))}</pre>"),
    ]
    return "\n".join(
        [
            f"<section>{heading}<p class=facts>{facts}</p>",
            f"<p class=lead>{escape(headline(setting))}</p><ul class=key>{points}</ul>",
            f"<div class=grid>{''.join(_figures(setting, f'setting{i}'))}</div>",
            f"<h3>Test scores</h3>{results_table(setting)}",
            *(f"<h3>{name}</h3>{table}" for name, table in tables if table),
            "<h3>More</h3>",
            *(f"<details><summary>{name}</summary>{table}</details>" for name, table in folded if table),
            "</section>",
        ]
    )


def _figures(setting: dict[str, Any], name: str) -> list[str]:
    K = setting["recipe"]["late_phase"]["members"]
    ensemble = any(m["ensemble"] is not None for m in setting["methods"].values())
    bar = " The upright bar is the ensemble of the members' predictions." if ensemble else ""
    held_out = "validation" if setting["images"]["validation"] else "test"
    figures = [
        (
            "Accuracy, set against plain SGD",
            differences_figure(setting, f"{name}-differences"),
            "Differences seed by seed; an interval clear of the line is one that chance rarely makes.",
        ),
        (
            "Accuracy",
            scores_figure(setting, "accuracy", f"{name}-accuracy"),
            f"Mean over seeds on the test images.{bar}",
        ),
        (
            "Negative log-likelihood",
            scores_figure(setting, "nll", f"{name}-nll"),
            f"Lower is better.{bar}",
        ),
        (
            "Learning curves",
            curves_figure(setting, f"{name}-curves"),
            f"Error on the {held_out} images, mean over seeds; late-phase training is the averaged model. Up to T0 the "
            "methods are one and the same training.",
        ),
        (
            "Reliability",
            reliability_figure(setting, f"{name}-reliability"),
            "Above the diagonal a model is less sure than it should be, below it more. Hollow: few predictions.",
        ),
        (
            "How often two members disagree",
            agreement_figure(setting, f"{name}-agreement"),
            f"Percent of the test images on which two of the {K} members predict different classes.",
        ),
    ]
    return [_card(title, figure, caption) for title, figure, caption in figures if figure]


def _card(title: str, figure: str, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{figure}<figcaption>{escape(caption)}</figcaption></figure>"


def _methods(settings: list[dict[str, Any]]) -> str:
    """What is compared, in a line for each method; the settings may differ in theirs and in K."""
    lines = {m["label"]: m["summary"] for setting in settings for m in setting["methods"].values()}
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(summary)}</dd>" for label, summary in lines.items())
    if len(lines) == 1:
        return f"<dl>{rows}</dl>"
    return (
        "<h3>What is compared</h3><p>With the same seed all methods see the same minibatches, and equally many: a "
        f"round of K members counts as K.</p><dl>{rows}</dl>"
    )


def _cost_note(setting: dict[str, Any]) -> str:
    batches = setting["minibatches"]
    if batches["trained"] == batches["without_sharing"]:
        return "<p>Nothing was shared: every method was trained from its first minibatch.</p>"
    return (
        f"<p>Training that is the same for several methods was done once: {batches['trained']:,} minibatches in all "
        f"instead of {batches['without_sharing']:,}. A method's cost on its own is its shared and its own training "
        "together; methods read off one trajectory show the same training. Times are wall times of one process among "
        "those that shared the machine, means over seeds.</p>"
    )


def _provenance(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    legs = results["legs"]
    rows = {
        "command": f"<code>{escape(results['command'])}</code>",
        "commit": f"<code>{escape(results['commit'] or 'not in a git repository')}</code>",
        "machine": escape(results["device"]),
        "versions": escape(versions),
        "training": f"{duration(results['training_seconds'])} in all, in {results['workers']} "
        f"process{'es' if results['workers'] > 1 else ''} at a time",
        "this command": f"{duration(results['seconds'])}, in which it did {legs['trained_now']} of {legs['all']} "
        "stretches of training",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
    return (
        f"<section><h2>How this was made</h2><dl>{listed}</dl><p class=facts>{escape(caution(results))}</p></section>"
    )
