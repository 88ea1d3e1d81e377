"""The honest comparison: equal minibatches, every method at its own best learning rate, annealed SGD beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import Method, late_phase, start_near, tune
from latephase.experiments.theory.table import Table

_LIMIT = 1.98
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# An annealed rate costs one step per minibatch: fewer starts, where the loss still depends on them.
_ANNEALED_SHARES = (0.0, 0.5, 0.7, 0.8, 0.9)


class Tuned(NamedTuple):
    """A method at its best learning rate.

    Attributes:
        name: The method.
        lr: The learning rate.
        setting: The best of its other settings, in words.
        loss: Its expected loss.
    """

    name: str
    lr: float
    setting: str
    loss: float


def figure(config: TheoryConfig, results: dict[int, list[Tuned]]) -> Figure:
    """The tuned losses against the budget.

    Args:
        config: What was computed.
        results: What `tuned` returned for each budget.

    Returns:
        One panel of the losses and one of their ratios.
    """
    number = _members(config)
    looks = {
        "SGD": look(1),
        "SGD annealed": "annealed",
        f"K = {number}, T0 = 0": look(number, "alternative"),
        f"K = {number}": look(number),
        f"K = {number} annealed": look(number, "members"),
        "SWA": "swa",
    }
    budgets = np.array(sorted(results), dtype=np.float64)
    losses = {
        name: np.array([next(entry.loss for entry in results[int(n)] if entry.name == name) for n in budgets])
        for name in looks
    }
    panels = [
        Panel(
            "annealing",
            "Learning rate tuned at every N",
            "minibatches N",
            "expected loss after N minibatches",
            [Curve(name, budgets, losses[name], curve_look) for name, curve_look in looks.items()],
            x_log=True,
        ),
        Panel(
            "annealing-ratio",
            "Relative to annealed SGD",
            "minibatches N",
            "loss / loss of annealed SGD",
            [
                Curve(name, budgets, losses[name] / losses["SGD annealed"], curve_look)
                for name, curve_look in looks.items()
            ],
            x_log=True,
            y_log=False,
        ),
    ]
    begin, end, final = config.quadratic.annealing
    text = (
        "Every method has its own best learning rate at every budget; late-phase training has its best start too."
        " Late-phase training from the beginning is worse than plain SGD; from its best start it beats plain SGD at"
        f" a constant rate. SGD annealed (constant to {begin:.0%} of training, linear to {final:g} of its rate at"
        f" {end:.0%}) does better still, and late-phase weights add nothing to it here."
    )
    return Figure("Against annealed SGD", text, panels)


def table(config: TheoryConfig, budget: int, done: list[Tuned]) -> Table:
    """All methods at one budget, each at its best learning rate.

    Args:
        config: What to compute.
        budget: N.
        done: What `tuned` returned for this budget.

    Returns:
        One row per method.
    """
    number = _members(config)
    problem = nqp.Problem(nqp.power_law(config.quadratic.directions))
    results = list(done)
    schedule = _schedule(config, budget)
    nesterov: dict[str, Any] = {"momentum": 0.9, "nesterov": True}
    limit = 0.99 * nqp.SGD(0.1, **nesterov).max_lr(problem)
    results += [
        _best("Nesterov .9", budget, problem, [("", partial(nqp.SGD, **nesterov))], limit),
        _best("Nesterov .9 annealed", budget, problem, [("", partial(nqp.SGD, schedule=schedule, **nesterov))], limit),
    ]
    results.append(
        _best_late(
            f"K = {number}, Nesterov .9 annealed",
            budget,
            problem,
            number,
            (0.5, 0.9),
            limit,
            schedule=schedule,
            **nesterov,
        )
    )
    drops = [
        (f"drop at {at}", partial(nqp.SGD, schedule=nqp.LinearDecay(at, at, 0.1)))
        for at in (round(share * budget) for share in _SHARES)
    ]
    results.append(_best("SGD, one drop to lr/10", budget, problem, drops))
    other = max(config.quadratic.members)
    if other != number:
        results.append(_best_late(f"K = {other}, T0 = 0", budget, problem, other, (0.0,)))
        results.append(_best_late(f"K = {other}", budget, problem, other, _SHARES))
    emas = [(f"decay {d:g}", partial(nqp.EMA, decay=d)) for d in (0.99, 0.995, 0.997, 0.998, 0.999)]
    results.append(_best("EMA", budget, problem, emas))
    lookaheads = [(f"k 5, alpha {a:g}", partial(nqp.Lookahead, k=5, alpha=a)) for a in (0.2, 0.5, 0.8)]
    results.append(_best("Lookahead", budget - budget % 5, problem, lookaheads))
    rows: list[list[str | int | float]] = [
        [entry.name, f"{entry.lr:.3g}", entry.setting, entry.loss]
        for entry in sorted(results, key=lambda entry: entry.loss)
    ]
    begin, end, final = config.quadratic.annealing
    text = (
        f"Expected loss after {budget} minibatches, n = {problem.directions}, each method at its own best learning rate"
        f" (a grid up to {_LIMIT:g} of the curvature's inverse, then golden sections) and at the best of a few settings"
        f" of its own; K = {number} from T0 = 0 is {number}-batch SGD. Annealed: constant to"
        f" {begin:.0%} of training, linear to {final:g} of the rate at {end:.0%}."
    )
    return Table("tuned", "Every method tuned", text, ["method", "lr", "setting", "loss"], rows)


def tuned(config: TheoryConfig, budget: int) -> list[Tuned]:
    """The methods of the figure at one budget.

    Args:
        config: What to compute.
        budget: N.

    Returns:
        One entry for each method.
    """
    problem = nqp.Problem(nqp.power_law(config.quadratic.directions))
    number = _members(config)
    schedule = _schedule(config, budget)
    windows = sorted({max(1, round(share * budget)) for share in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)})
    swas = [(f"last {m}", partial(nqp.SWA, window=m)) for m in windows]
    return [
        _best("SGD", budget, problem, [("", nqp.SGD)]),
        _best("SGD annealed", budget, problem, [("", partial(nqp.SGD, schedule=schedule))]),
        _best_late(f"K = {number}, T0 = 0", budget, problem, number, (0.0,)),
        _best_late(f"K = {number}", budget, problem, number, _SHARES),
        _best_late(f"K = {number} annealed", budget, problem, number, _ANNEALED_SHARES, schedule=schedule),
        _best("SWA", budget, problem, swas),
    ]


def _best(
    name: str,
    budget: int,
    problem: nqp.Problem,
    settings: Sequence[tuple[str, Callable[[float], Method]]],
    limit: float = _LIMIT,
) -> Tuned:
    """Tune the learning rate of every setting and keep the best."""
    tries = [(detail, *tune(build, problem, budget, limit)) for detail, build in settings]
    detail, lr, loss = min(tries, key=lambda entry: entry[2])
    return Tuned(name, lr, detail, loss)


def _best_late(
    name: str,
    budget: int,
    problem: nqp.Problem,
    number: int,
    shares: tuple[float, ...],
    limit: float = _LIMIT,
    **options: Any,
) -> Tuned:
    starts = sorted({start_near(share * budget, budget, number) for share in shares})
    settings = [(f"T0 = {at}", partial(late_phase, number, start=at, **options)) for at in starts]
    return _best(name, budget, problem, settings, limit)


def _members(config: TheoryConfig) -> int:
    """The K of the comparison: the middle one."""
    return sorted(config.quadratic.members)[len(config.quadratic.members) // 2]


def _schedule(config: TheoryConfig, budget: int) -> nqp.LinearDecay:
    begin, end, final = config.quadratic.annealing
    return nqp.LinearDecay(round(begin * budget), round(end * budget), final)
