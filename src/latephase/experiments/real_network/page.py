"""The report of the comparison: every number of it is read from results.json."""

from __future__ import annotations

from typing import Any

import yaml

from latephase.experiments.real_network.figures import directions_figure, losses_figure
from latephase.experiments.real_network.findings import decimals, findings, headline, number, ratio
from latephase.experiments.report.document import Document, Figures, Points, Section, Source, Table, Text
from latephase.experiments.report.numbers import duration
from latephase.experiments.report.provenance import facts, provenance


def report(results: dict[str, Any]) -> Document:
    """The report.

    Args:
        results: The content of results.json.

    Returns:
        The document.
    """
    setting = results["setting"]
    made = provenance(
        results,
        {
            "this command": duration(results["seconds"]),
            "numbers": "results.json; every figure's as CSV in csv/, every table as Markdown in tables.md",
        },
    )
    return Document(
        "The quadratic model of a real network",
        facts(results),
        [Text(headline(results), "lead")],
        [
            Section("Predicted and measured").add(
                Text(_what(results), "facts"), Figures((losses_figure(results),)), table(results)
            ),
            Section("What agrees and what does not").add(
                Points(tuple(findings(results))), Figures((directions_figure(results),))
            ),
            Section("How this was made").add(
                Text(_how(results)), made, Source("The setting", yaml.safe_dump(setting, sort_keys=False))
            ),
        ],
    )


def table(results: dict[str, Any]) -> Table:
    """Every scheme's loss and noise, measured and predicted.

    Args:
        results: The content of results.json.

    Returns:
        The table.
    """
    rows, digits = [], decimals(results)
    for scheme in results["schemes"].values():
        loss, noise, member = scheme["late_loss"], scheme["late_noise"], scheme["late_member"]
        of_noise, error = ratio(scheme)
        expected = scheme["late_member_predicted"]
        rows.append(
            (
                scheme["label"],
                f"{number(loss['mean'], digits)} ± {number(loss['se'], digits)}",
                number(scheme["late_predicted"], digits),
                f"{number(noise['mean'], digits)} ± {number(noise['se'], digits)}",
                number(scheme["late_noise_predicted"], digits),
                f"{number(of_noise, 2)} ± {number(error, 2)}",
                "" if expected is None else f"{number(member['mean'], digits)} ± {number(member['se'], digits)}",
                "" if expected is None else number(expected, digits),
            )
        )
    return Table(
        "Second half of the runs",
        ("scheme", "loss", "predicted loss", "noise", "predicted noise", "ratio", "a member's loss", "its prediction"),
        tuple(rows),
        "Means over runs with standard errors. Noise: loss of the averaged model minus the loss of the mean of all"
        " runs'"
        " weights, corrected for their number.",
        ours=frozenset(s["label"] for s in results["schemes"].values() if s["label"].startswith("late phase")),
    )


def _what(results: dict[str, Any]) -> str:
    setting, network = results["setting"], results["network"]
    return (
        f"SmallCNN, {network['weights']} weights of which {network['late_weights']} in norms and head ·"
        f" {setting['images']}"
        f" digits, {100 * setting['label_noise']:.0f}% of the labels random · cross-entropy plus weight decay"
        f" {setting['weight_decay']:g} · batch {setting['batch_size']}, drawn with replacement · learning rate"
        f" {setting['lr']:g}, K = {setting['members']} · {setting['replicas']} runs of {setting['minibatches']:,}"
        " minibatches"
    )


def _how(results: dict[str, Any]) -> str:
    setting, network = results["setting"], results["network"]
    settling = ", ".join(number(loss, 4) for loss in network["settling"])
    return (
        f"BatchNorm is in eval mode after half of the warm-up ({setting['warm_up']:,} minibatches with momentum), in"
        " what is"
        f" predicted and in what is measured. SGD at the constant rate then trains for {setting['settling']:,}"
        " minibatches"
        f" (loss at the quarters: {settling}); that is the start. The quadratic model is expanded where"
        f" {setting['descent']} steps of gradient descent on all images lead from there (distance"
        f" {number(network['distance'], 3)}, loss {number(network['loss_at_centre'], 5)}, gradient"
        f" {number(network['gradient_at_centre'], 4)}): near the start, without SGD's noise, and not at a minimum,"
        " which is"
        " far away along flat directions. The gradient there is part of the model. Hessian and covariance of single"
        " images' gradients are exact. Every direction of the Hessian is a direction of the noisy quadratic problem,"
        " with"
        " the start's own place in it as the initial error; negative curvatures are set to 0, where the loss falls"
        " along"
        f" the slope. At the start the loss is {number(network['loss_at_start'], 5)}, the quadratic says"
        f" {number(network['quadratic_at_start'], 5)}. With summed base gradients (gamma = 1) base weights move K"
        " times as fast; that is SGD on a"
        " rescaled Hessian, and predicted as exactly. Nothing was fitted to the runs."
    )
