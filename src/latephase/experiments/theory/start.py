"""When to start: the loss after a fixed number of minibatches against T0, as figure and tables."""

from __future__ import annotations

import numpy as np

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import late_phase, loss_at, start_near
from latephase.experiments.theory.table import Table


def figure(config: TheoryConfig) -> Figure:
    """The loss after N minibatches against the start, for the two largest budgets.

    Args:
        config: What to compute.

    Returns:
        One panel per budget.
    """
    quadratic = config.quadratic
    problem = nqp.Problem(nqp.power_law(quadratic.directions))
    panels = []
    for budget in sorted(quadratic.budgets)[-2:]:
        shares = np.linspace(0, 1, 101)
        plain = np.full(2, loss_at(nqp.SGD(quadratic.lr), problem, budget))
        curves = [Curve("SGD", np.array([0.0, 1.0]), plain, look(1))]
        bests = []
        for number in quadratic.members:
            starts = sorted({start_near(share * budget, budget, number) for share in shares})
            losses = [loss_at(late_phase(number, quadratic.lr, start=start), problem, budget) for start in starts]
            curves.append(Curve(f"K = {number}", np.array(starts) / budget, np.array(losses), look(number)))
            best, loss = nqp.best_start(late_phase(number, quadratic.lr), problem, budget)
            bests.append(
                Curve(
                    f"K = {number} best start",
                    np.array([best / budget]),
                    np.array([float(loss.average)]),
                    look(number, "open"),
                    legend=False,
                )
            )
        number = quadratic.members[-1]
        drops = [_drop(quadratic.lr, number, round(share * budget)) for share in shares]
        values = np.array([loss_at(method, problem, budget) for method in drops])
        curves.append(Curve(f"SGD lr/{number}", shares, values, look(number, "alternative")))
        panels.append(
            Panel(
                f"start-{budget}",
                f"N = {budget} minibatches",
                "start T0 / N",
                "expected loss after N minibatches",
                [*curves, *bests],
            )
        )
    text = (
        f"Expected loss after N minibatches against the start (learning rate {quadratic.lr:g}, n ="
        f" {problem.directions}); hollow marks are the exact optima. Too early a start leaves bias, too late a start"
        f" leaves noise. The dotted line is plain SGD whose rate drops by {quadratic.members[-1]} at T0: it"
        " does the same."
    )
    return Figure("When to start", text, panels)


def equal_minibatches(config: TheoryConfig) -> Table:
    """Losses after equal minibatches at one learning rate.

    Args:
        config: What to compute.

    Returns:
        One row per budget and K.
    """
    quadratic = config.quadratic
    problem = nqp.Problem(nqp.power_law(quadratic.directions))
    lr = quadratic.lr
    rows: list[list[str | int | float]] = []
    for budget in quadratic.budgets:
        sgd = loss_at(nqp.SGD(lr), problem, budget)
        windows = sorted({max(1, budget * part // 20) for part in range(2, 21)})
        swa = min((loss_at(nqp.SWA(lr, window), problem, budget), budget - window) for window in windows)
        for number in quadratic.members:
            method = late_phase(number, lr)
            at_once = loss_at(late_phase(number, lr, start=budget % number), problem, budget)
            start, best = nqp.best_start(method, problem, budget)
            drop = loss_at(_drop(lr, number, start), problem, budget)
            rows.append([budget, number, sgd, at_once, float(best.average), start, drop, swa[0], swa[1]])
    header = ["N", "K", "SGD", "T0 = 0", "at best T0", "best T0", "SGD lr/K from there", "SWA", "SWA from"]
    text = (
        f"Expected loss after N minibatches at learning rate {lr:g}, n = {problem.directions}, initial error 1. The"
        " best start is exact; SWA averages from the best of 19 starts to the end."
    )
    return Table("equal-minibatches", "Equal minibatches", text, header, rows, digits=5)


def one_direction(config: TheoryConfig) -> Table:
    """The closed form of the best start for one direction.

    Args:
        config: What to compute.

    Returns:
        One row per K and perturbation.
    """
    problem = nqp.Problem([1.0], initial_mean=10.0)
    rows: list[list[str | int | float]] = []
    for number in config.quadratic.members:
        for variance in (0.0, 0.05, 0.2):
            method = late_phase(number, 0.2, perturbation_variance=variance)
            start = float(nqp.optimal_start(method, problem)[0])
            budget = 6 * number * max(1, round(60 / (6 * number)))
            found, loss = nqp.best_start(method, problem, budget)
            sgd = loss_at(nqp.SGD(0.2), problem, budget)
            at_once = loss_at(method, problem, budget)
            rows.append([number, f"{variance:g}", start, budget, found, float(loss.average), at_once, sgd])
    header = ["K", "perturbation variance", "T0*", "N", "best whole T0", "its loss", "T0 = 0", "SGD"]
    text = (
        "One direction of curvature 1, learning rate 0.2, initial error 10, noise 1. T0* is where SGD's loss has"
        " fallen to (1 + 1/K) times its floor when the members start without perturbation; it does not depend on N."
    )
    return Table("one-direction", "The best start in closed form", text, header, rows, digits=6)


def _drop(lr: float, divisor: int, at: int) -> nqp.SGD:
    return nqp.SGD(lr, schedule=nqp.LinearDecay(begin=at, end=at, final=1 / divisor))
