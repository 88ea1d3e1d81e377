"""What the numbers say, in sentences made from them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from latephase.experiments.real_network.study import CLOUD
from latephase.experiments.report import numbers

_AGREES = 0.15


number = partial(numbers.number, huge=1e4)
"""A number as the report writes it; beyond that the prediction has diverged."""


def decimals(results: dict[str, Any]) -> int:
    """Digits after the point that show the smallest noise with two digits; at least 5.

    Args:
        results: The content of results.json.

    Returns:
        The number of digits.
    """
    smallest = min(scheme["late_noise_predicted"] for scheme in results["schemes"].values())
    return max(5, 1 - math.floor(math.log10(smallest))) if smallest > 0 else 5


def ratio(scheme: dict[str, Any]) -> tuple[float, float]:
    """Measured over predicted noise in the second half of the runs.

    Args:
        scheme: A scheme of results.json.

    Returns:
        The ratio and its standard error.
    """
    predicted = scheme["late_noise_predicted"]
    return scheme["late_noise"]["mean"] / predicted, scheme["late_noise"]["se"] / predicted


def findings(results: dict[str, Any]) -> list[str]:
    """The sentences above the figures.

    Args:
        results: The content of results.json.

    Returns:
        One sentence or two for each finding.
    """
    written = (_unstable, _levels, _averaging, _equivalent, _noise, _members, _curvature, _place, _directions)
    return [sentence for write in written if (sentence := write(results))]


def headline(results: dict[str, Any]) -> str:
    """The one sentence above everything else.

    Args:
        results: The content of results.json.

    Returns:
        The sentence.
    """
    ratios = {name: ratio(scheme)[0] for name, scheme in results["schemes"].items()}
    near = [results["schemes"][name]["label"] for name, value in ratios.items() if abs(value - 1) <= _AGREES]
    far = [
        f"{results['schemes'][name]['label']} ({number(value, 2)})"
        for name, value in ratios.items()
        if abs(value - 1) > _AGREES
    ]
    if not far:
        return f"The quadratic model predicts the noise of every scheme to {100 * _AGREES:.0f}%."
    if not near:
        return f"The quadratic model misses the noise of every scheme; measured over predicted: {', '.join(far)}."
    return (
        f"The quadratic model predicts the noise of {len(near)} of {len(ratios)} schemes to {100 * _AGREES:.0f}%"
        f" ({'; '.join(near)}); measured over predicted for the others: {', '.join(far)}."
    )


def _unstable(results: dict[str, Any]) -> str | None:
    sharp = {s["label"]: s["sharpness"] for s in results["schemes"].values() if s["sharpness"] >= 2}
    if not sharp:
        return None
    listed = "; ".join(f"{label} ({number(value, 1)})" for label, value in sharp.items())
    return (
        f"The model has no steady state for {listed}: learning rate times largest curvature is 2 or more, and what is"
        " predicted grows. The real network's curvature need not stay what it is at the centre."
    )


def _levels(results: dict[str, Any]) -> str:
    shares = []
    for scheme in results["schemes"].values():
        loss, predicted = scheme["late_loss"], scheme["late_predicted"]
        shares.append((loss["mean"] - predicted) / max(loss["se"], 1e-300))
    within = sum(abs(z) <= 2 for z in shares)
    return (
        f"Mean loss over the second half of the runs: {within} of {len(shares)} schemes lie within two standard"
        " errors of"
        f" the prediction; the largest deviation is {number(max(shares, key=abs), 1, signed=True)} standard errors."
    )


def _averaging(results: dict[str, Any]) -> str:
    schemes, members = results["schemes"], results["setting"]["members"]
    sgd = schemes["sgd"]
    parts = []
    for name in ("k-batch", "additive", "norm-head-mean", "lr-over-k"):
        measured = sgd["late_noise"]["mean"] / schemes[name]["late_noise"]["mean"]
        predicted = sgd["late_noise_predicted"] / schemes[name]["late_noise_predicted"]
        parts.append(f"{schemes[name]['label']} by {number(measured, 1)} (predicted {number(predicted, 1)})")
    return f"SGD's noise is divided, with K = {members}: {'; '.join(parts)}."


def _equivalent(results: dict[str, Any]) -> str:
    schemes, scale = results["schemes"], 10 ** decimals(results)
    parts = []
    for name in ("additive", "norm-head-mean"):
        paired = results["paired"][name]
        parts.append(
            f"{schemes[name]['label']} {number(scale * paired['mean'], 1, signed=True)} ±"
            f" {number(scale * paired['se'], 1)}"
        )
    return (
        "The theory makes these equal to K-batch SGD. Measured on the same minibatches, loss minus that of K-batch SGD,"
        f" times {scale:,}: {'; '.join(parts)}."
    )


def _noise(results: dict[str, Any]) -> str:
    digits = decimals(results)
    sgd, causes = results["schemes"]["sgd"], results["causes"]
    linear, met = causes["linear"]["late_noise"], causes["noise_met"]["sgd"]
    return (
        f"SGD's noise adds {_with_error(sgd['late_noise'], digits)} to the loss, {number(ratio(sgd)[0], 2)} times"
        " what the"
        " constant"
        f" noise of the centre predicts ({number(sgd['late_noise_predicted'], digits)}). Where SGD is, single gradients"
        " scatter"
        f" {number(met['ratio'], 2)} times as much (trace of the covariance at the end of {_cloud(results)} runs),"
        " and the"
        f" prediction with that noise is {number(met['late_noise_predicted'], digits)}. A quadratic loss of which every"
        " minibatch"
        f" keeps its own Hessian, on the same minibatches, gives {_with_error(linear, digits)}."
    )


def _members(results: dict[str, Any]) -> str:
    digits = decimals(results)
    schemes, met = results["schemes"], results["causes"]["noise_met"]["additive"]
    additive, batch = schemes["additive"], schemes["k-batch"]
    return (
        f"Late-phase members draw their gradients where they are, K-batch SGD at the average: noise adds"
        f" {_with_error(additive['late_noise'], digits)} against {_with_error(batch['late_noise'], digits)} (both"
        " predicted"
        f" {number(batch['late_noise_predicted'], digits)}). At the members gradients scatter {number(met['ratio'], 2)}"
        " times as much"
        f" as at the centre; with that noise the prediction is {number(met['late_noise_predicted'], digits)}."
    )


def _with_error(summary: dict[str, Any], digits: int) -> str:
    return f"{number(summary['mean'], digits)} ± {number(summary['se'], digits)}"


def _cloud(results: dict[str, Any]) -> int:
    return min(CLOUD, int(results["setting"]["replicas"]))


def _curvature(results: dict[str, Any]) -> str:
    ratios = [entry["secant"] / entry["curvature"] for entry in results["causes"]["curvature"]]
    return (
        f"Over one standard deviation of SGD's cloud to either side, the curvature along the {len(ratios)} steepest"
        f" directions is {number(min(ratios), 2)} to {number(max(ratios), 2)} times the Hessian's, on average"
        f" {number(sum(ratios) / len(ratios), 2)}."
    )


def _place(results: dict[str, Any]) -> str:
    digits = decimals(results)
    begun = results["network"]["loss_at_centre"]
    parts = []
    for name in ("sgd", "k-batch", "norm-head-sum"):
        scheme = results["schemes"][name]
        fell, predicted = begun - scheme["end_place"], begun - scheme["end_place_predicted"]
        # Rounded first, so that nothing is "minus zero".
        parts.append(
            f"{scheme['label']} {number(round(fell, digits) + 0.0, digits)} (predicted {number(predicted, digits)})"
        )
    return (
        "Drift along the flat directions: the loss of the runs' middle at the end lies below that of the centre by"
        f" {'; '.join(parts)}. Negative eigenvalues of the Hessian, which the model takes"
        f" as flat: {results['negative']} of {len(results['curvature'])}."
    )


def _directions(results: dict[str, Any]) -> str:
    parts = []
    for name in ("sgd", "k-batch"):
        scheme = results["schemes"][name]
        total = sum(b["predicted"] for b in scheme["bins"])
        good = [b for b in scheme["bins"] if b["predicted"] and abs(b["measured"] / b["predicted"] - 1) <= _AGREES]
        directions, share = sum(b["directions"] for b in good), sum(b["predicted"] for b in good) / total
        parts.append(
            f"{scheme['label']} in {directions} of {len(results['curvature'])} directions, which hold"
            f" {number(100 * share, 0)}% of the predicted noise"
        )
    return f"Direction by direction the variance agrees to {100 * _AGREES:.0f}%: {'; '.join(parts)}."
