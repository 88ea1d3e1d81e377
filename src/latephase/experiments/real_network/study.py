"""The whole comparison: start, expansion, prediction and measurement, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad

from latephase.experiments.real_network.measure import Runs, draw, run
from latephase.experiments.real_network.objective import Objective
from latephase.experiments.real_network.quadratic import Directions, Quadratic, directions, expand, member_excess
from latephase.experiments.real_network.schemes import Scheme, late_weights, schemes
from latephase.experiments.real_network.setting import Setting
from latephase.experiments.real_network.start import network, settle
from latephase.experiments.statistics import paired_difference, summarise

_STEEP = 20  # directions whose curvature is measured over the width of SGD's cloud
#: Runs at whose end the noise is measured.
CLOUD = 8
# Directions per bin of the comparison of second moments, steepest first; the last bin takes the rest.
_BINS = (5, 15, 40, 100, 240)


def study(setting: Setting, advance: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Predict and measure.

    Args:
        setting: What is trained.
        advance: Called with what is done next, `steps()` times.

    Returns:
        Plain values for JSON.

    Raises:
        ExperimentError: If there are not so many images, or training diverged.
    """
    advance("warming up")
    model, objective = network(setting)
    advance("training at the constant rate")
    start, centre, settling = settle(objective, model, setting)
    advance("Hessian")
    quadratic = expand(objective, centre)
    chosen = schemes(late_weights(model), setting.lr, setting.members)
    return {
        "network": {
            "weights": len(start),
            "late_weights": int(late_weights(model).sum()),
            "settling": settling,
            "loss_at_start": float(objective.losses(start[None])[0]),
            "loss_at_centre": quadratic.loss,
            "quadratic_at_start": float(quadratic.losses(start[None])[0]),
            "gradient_at_centre": float(quadratic.gradient.norm()),
            "distance": float((start - centre).norm()),
        },
        **compare(objective, quadratic, start, chosen, setting, advance),
    }


def steps() -> int:
    """How often `study` advances."""
    return 3 + 6 + 2


def compare(
    objective: Objective,
    quadratic: Quadratic,
    start: Tensor,
    chosen: list[Scheme],
    setting: Setting,
    advance: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Set the measured runs of every scheme against the prediction.

    Args:
        objective: The loss.
        quadratic: Its expansion.
        start: Where every run begins, (n,).
        chosen: The schemes, plain SGD first.
        setting: Replicas, minibatches, batch size and seed.
        advance: Called with what is done next.

    Returns:
        Plain values for JSON.
    """
    counts = setting.counts
    index = draw(objective.samples, setting.replicas, setting.minibatches, setting.batch_size, setting.seed + 2)
    measured: dict[str, Any] = {}
    for scheme in chosen:
        advance(scheme.label)
        runs = run(scheme, objective.minibatch_gradients, start, index, counts)
        found = directions(quadratic, scheme.effective_lr, start)
        measured[scheme.name] = _scheme(scheme, objective, quadratic, runs, found, setting)
        if scheme is chosen[0]:
            sgd, sgd_directions = runs, found
        if scheme.name == "additive":
            additive = runs
    advance("SGD with linear gradients")
    linear = run(chosen[0], objective.linear_gradients(quadratic.centre), start, index, counts)
    advance("noise and curvature where the runs are")
    causes = {
        "linear": _linear(quadratic, linear, counts),
        "noise_met": {
            "sgd": _met(objective, quadratic, sgd.average[-1], start, chosen[0], setting),
            "additive": _met(objective, quadratic, additive.member[-1], start, chosen[3], setting),
        },
        "curvature": _secants(objective, quadratic, sgd_directions, setting),
    }
    return {
        "counts": counts,
        "curvature": sgd_directions.curvature.tolist(),
        "noise": sgd_directions.noise.tolist(),
        "negative": sgd_directions.negative,
        "schemes": measured,
        "paired": {
            name: dict(paired_difference(measured[name]["late_losses"], measured["k-batch"]["late_losses"]))
            for name in ("additive", "norm-head-mean")
        },
        "causes": causes,
    }


def noise_and_place(losses: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Split the mean loss of a cloud into that of its middle and what the spread adds.

    Args:
        losses: Loss of (R, n).
        weights: The cloud at each count, (counts, R, n).

    Returns:
        What noise adds, one value for each run, (counts, R), with the mean that an infinite number of runs has if the
        loss is quadratic; and the loss of the middle, corrected alike, (counts,).
    """
    replicas, centre = weights.shape[1], weights.mean(1)
    middle = losses(centre)
    each = torch.stack([losses(cloud) for cloud in weights]) - middle[:, None]
    # The slope at the middle adds nothing to the mean over runs, but scatter to every single one.
    slope = torch.stack([grad(lambda w: losses(w[None])[0])(point) for point in centre])
    each = each - ((weights - centre[:, None]) @ slope[:, :, None])[:, :, 0]
    noise = each * replicas / (replicas - 1)
    return noise, middle - noise.mean(1) / replicas


def _scheme(
    scheme: Scheme, objective: Objective, quadratic: Quadratic, runs: Runs, found: Directions, setting: Setting
) -> dict[str, Any]:
    counts = setting.counts
    late = slice(len(counts) // 2, None)
    loss = torch.stack([objective.losses(weights) for weights in runs.average])
    member = torch.stack([objective.losses(weights) for weights in runs.member[late]])
    noise, place = noise_and_place(objective.losses, runs.average)
    expected = found.losses(scheme.members, setting.batch_size, counts)
    expected_member = expected + member_excess(quadratic, scheme, setting.batch_size, counts)
    parts = found.noise_part(scheme.members, setting.batch_size, counts)
    noise_expected = parts.sum(1)
    return {
        "label": scheme.label,
        "members": scheme.members,
        "sharpness": float(found.lr * found.curvature[0]),
        "loss": [dict(summarise(row.tolist())) for row in loss],
        "predicted": expected.tolist(),
        "late_loss": dict(summarise(loss[late].mean(0).tolist())),
        "late_predicted": float(expected[late].mean()),
        "late_losses": loss[late].mean(0).tolist(),
        "late_member": dict(summarise(member.mean(0).tolist())),
        "late_member_predicted": float(expected_member[late].mean()) if bool(scheme.late_lr.any()) else None,
        "late_noise": dict(summarise(noise[late].mean(0).tolist())),
        "late_noise_predicted": float(noise_expected[late].mean()),
        "end_place": float(place[-1]),
        "end_place_predicted": float(expected[-1] - noise_expected[-1]),
        "bins": _bins(found, runs.average[late], parts[late]),
    }


def _bins(found: Directions, weights: Tensor, parts: NDArray[np.float64]) -> list[dict[str, float]]:
    """Measured and predicted noise part of the loss by groups of directions, steepest first."""
    projected = (weights - weights.mean(1, keepdim=True)) @ found.basis
    variance = projected.square().sum(1).mean(0).numpy() / (weights.shape[1] - 1)
    measured, predicted = 0.5 * found.curvature * variance, parts.mean(0)
    edges = np.minimum(np.cumsum([0, *_BINS, len(measured)]), len(measured)).tolist()
    return [
        {
            "directions": high - low,
            "curvature_high": float(found.curvature[low]),
            "curvature_low": float(found.curvature[high - 1]),
            "measured": float(measured[low:high].sum()),
            "predicted": float(predicted[low:high].sum()),
        }
        for low, high in pairwise(edges)
        if low < high
    ]


def _linear(quadratic: Quadratic, runs: Runs, counts: list[int]) -> dict[str, Any]:
    """SGD on the quadratic itself, with every minibatch's own gradient and Hessian at the centre."""
    late = slice(len(counts) // 2, None)
    loss = torch.stack([quadratic.losses(weights) for weights in runs.average])
    noise, _ = noise_and_place(quadratic.losses, runs.average)
    return {
        "loss": [dict(summarise(row.tolist())) for row in loss],
        "late_loss": dict(summarise(loss[late].mean(0).tolist())),
        "late_noise": dict(summarise(noise[late].mean(0).tolist())),
    }


def _met(
    objective: Objective, quadratic: Quadratic, weights: Tensor, start: Tensor, scheme: Scheme, setting: Setting
) -> dict[str, Any]:
    """The prediction with the noise at the weights that meet it, instead of the noise at the centre."""
    late = setting.counts[len(setting.counts) // 2 :]
    met = torch.cat([objective.deviations(point) for point in weights[:CLOUD]])
    found = directions(quadratic, scheme.effective_lr, start, met)
    return {
        "ratio": float(met.square().sum(1).mean() / quadratic.deviations.square().sum(1).mean()),
        "late_noise_predicted": float(found.noise_part(scheme.members, setting.batch_size, late).sum(1).mean()),
    }


def _secants(objective: Objective, quadratic: Quadratic, found: Directions, setting: Setting) -> list[dict[str, float]]:
    """Curvature along the steepest directions over plus and minus one standard deviation of SGD's cloud."""
    steep = range(min(_STEEP, int(found.curved.sum())))
    part = found.noise_part(1, setting.batch_size, [setting.minibatches])[0]
    secants = []
    for i in steep:
        width = float(np.sqrt(2.0 * part[i] / found.curvature[i]))
        step = width * found.basis[:, i]
        change = objective.gradient(quadratic.centre + step) - objective.gradient(quadratic.centre - step)
        secant = float(change @ found.basis[:, i]) / (2.0 * width) if width else float(found.curvature[i])
        secants.append({"curvature": float(found.curvature[i]), "width": width, "secant": secant})
    return secants
