"""Steady states: the noise floor against the learning rate, as figure and table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import late_phase
from latephase.experiments.theory.table import Table

_TABLE_LR = (0.1, 0.5, 1.0, 1.9)


def figure(config: TheoryConfig) -> Figure:
    """The noise floor against the learning rate, for the averaged model and for its members.

    Args:
        config: What to compute.

    Returns:
        One panel for each.
    """
    problem = nqp.Problem(nqp.power_law(config.quadratic.steady_directions))
    rates = np.linspace(0.02, 1.98, 99)
    members = _with_twenty(config.quadratic.members)
    sgd = Curve("SGD", rates, _averages([nqp.SGD(lr).steady_state(problem) for lr in rates]), look(1))
    averaged, single = [sgd], [sgd]
    for number in members:
        losses = [late_phase(number, lr).steady_state(problem) for lr in rates]
        averaged.append(Curve(f"K = {number}", rates, _averages(losses), look(number)))
        means = np.array([loss.members for loss in losses], dtype=np.float64)
        single.append(Curve(f"K = {number}", rates, means, look(number, "members")))
    five = members[1] if len(members) > 1 else members[0]
    # With the sum of the base gradients instead of their mean the effective rate is lr (1 + K) / 2; it must be < 2.
    summed = rates[rates * (1 + five) / 2 < 2.0]
    losses = [nqp.LatePhase(five, lr / 2, lr / 2, 1.0).steady_state(problem) for lr in summed]
    averaged.append(Curve(f"K = {five}, summed", summed, _averages(losses), look(five, "alternative")))
    panels = [
        Panel(f"steady-state-{name}", title, "learning rate, base + late", "expected loss in the steady state", curves)
        for name, title, curves in (
            ("averaged", "Averaged model", averaged),
            ("members", "Mean member", single),
        )
    ]
    text = (
        f"Noise floor against the learning rate (n = {problem.directions}). Averaging K members divides SGD's floor"
        " by K exactly (first panel), while a single member pays for its own noise too (second panel). With summed base"
        f" gradients (dotted, K = {five}) the effective rate is late + K base: no gain by 1/K, and stability ends"
        " early."
    )
    return Figure("Steady state", text, panels)


def table(config: TheoryConfig) -> Table:
    """The noise floors of all methods at four learning rates.

    Args:
        config: What to compute.

    Returns:
        One row per learning rate.
    """
    problem = nqp.Problem(nqp.power_law(config.quadratic.steady_directions))
    members = _with_twenty(config.quadratic.members)
    divisor = members[1] if len(members) > 1 else members[0]
    rows: list[list[str | int | float]] = []
    for lr in _TABLE_LR:
        row: list[str | int | float] = [f"{lr:g}", _floor(nqp.SGD(lr), problem)]
        for number in members:
            loss = late_phase(number, lr).steady_state(problem)
            row += [float(loss.average), float(loss.members)]
        others = (
            nqp.SGD(lr / divisor),
            nqp.SWA(lr, window=100),
            nqp.EMA(lr, decay=0.99),
            nqp.Lookahead(lr, k=5, alpha=0.5),
        )
        rows.append(row + [_floor(method, problem) for method in others])
    pairs = [name for number in members for name in (f"K={number}", f"K={number} member")]
    header = ["lr", "SGD", *pairs, f"SGD lr/{divisor}", "SWA 100", "EMA .99", "Lookahead"]
    text = (
        f"Expected loss in the steady state, n = {problem.directions}, curvatures 1/i, gradient noise with"
        " covariance H, batch size 1, mean base gradients. K = averaged model, member = mean over its members;"
        " Lookahead with k = 5, alpha = 0.5."
    )
    return Table("steady-state-table", "Noise floors", text, header, rows, digits=6)


def _with_twenty(members: Sequence[int]) -> list[int]:
    return sorted({*members, 20})


def _averages(losses: Sequence[nqp.Loss]) -> NDArray[np.float64]:
    return np.array([loss.average for loss in losses], dtype=np.float64)


def _floor(method: nqp.SGD | nqp.SWA | nqp.EMA | nqp.Lookahead, problem: nqp.Problem) -> float:
    return float(method.steady_state(problem).average)
