"""The honest comparison: equal minibatches, every method at its own best learning rate, annealed SGD beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from latephase import nqp
from latephase.experiments.theory.config import TheoryConfig
from latephase.experiments.theory.draw import look
from latephase.experiments.theory.panel import Curve, Figure, Panel
from latephase.experiments.theory.setting import Method, late_phase, loss_at, tune
from latephase.experiments.theory.table import Table

_LIMIT = 1.98
_NESTEROV: Any = {"momentum": 0.9, "nesterov": True}
# Other shapes of an annealed rate (constant to, linear to, final factor), to see what a better shape is worth.
_SHAPES = ((0.0, 1.0, 0.01), (0.0, 0.9, 0.1), (0.25, 0.9, 0.01), (0.5, 1.0, 0.01))
_LOOKS = {
    "SGD": look(1),
    "SGD annealed": "annealed",
    "late phase": look(5),
    "late phase, annealed": look(10),
    "SGD lr/K, annealed": "lookahead",
    "SWA": "swa",
}


class Tuned(NamedTuple):
    """A method at its best learning rate.

    Attributes:
        name: The method.
        lr: The learning rate.
        setting: The best of its other settings, in words.
        loss: Its expected loss.
        members: Its best K; 1 where there are no members.
    """

    name: str
    lr: float
    setting: str
    loss: float
    members: int = 1


def figure(config: TheoryConfig, results: dict[int, list[Tuned]]) -> Figure:
    """The tuned losses against the budget.

    Args:
        config: What was computed.
        results: What `tuned` returned for each budget.

    Returns:
        One panel of the losses and one of their ratios.
    """
    budgets = np.array(sorted(results), dtype=np.float64)
    losses = {
        name: np.array([next(entry.loss for entry in results[int(n)] if entry.name == name) for n in budgets])
        for name in _LOOKS
    }
    panels = [
        Panel(
            name,
            title,
            "minibatches N",
            y_label,
            [Curve(curve, budgets, losses[curve] / unit, curve_look) for curve, curve_look in _LOOKS.items()],
            x_log=True,
            y_log=y_log,
        )
        for name, title, y_label, unit, y_log in (
            ("annealing", "Learning rate tuned at every N", "expected loss after N minibatches", 1.0, True),
            (
                "annealing-ratio",
                "Relative to annealed SGD",
                "loss / loss of annealed SGD",
                losses["SGD annealed"],
                False,
            ),
        )
    ]
    begin, end, final = config.quadratic.annealing
    text = (
        "Every method has its own best learning rate at every budget, the late phase also its best K and start. At a"
        " constant rate it is far better than plain SGD, but not than annealed SGD (constant to"
        f" {begin:.0%} of training, linear to {final:g} of its rate at {end:.0%}). What it adds to an annealed rate is"
        " what dividing the rate by K at the best moment adds (dotted, just below it)."
    )
    return Figure("Against annealed SGD", text, panels)


def table(config: TheoryConfig, budget: int, done: Sequence[Tuned]) -> Table:
    """All methods at one budget, each at its best learning rate.

    Args:
        config: What to compute.
        budget: N.
        done: What `tuned` returned for this budget.

    Returns:
        One row per method, best first.
    """
    problem = _problem(config)
    schedule = _schedule(config.quadratic.annealing, budget)
    limit = 0.99 * nqp.SGD(0.1, **_NESTEROV).max_lr(problem)
    shapes = [
        (f"{begin:.0%}, {end:.0%}, {final:g}", partial(nqp.SGD, schedule=_schedule((begin, end, final), budget)))
        for begin, end, final in _SHAPES
    ]
    drops = [
        (f"at {at}", partial(nqp.SGD, schedule=nqp.LinearDecay(at, at, 0.1)))
        for at in (round(share * budget) for share in np.linspace(0, 0.9, 10))
    ]
    emas = [(f"decay {d:g}", partial(nqp.EMA, decay=d)) for d in (0.99, 0.995, 0.997, 0.998, 0.999)]
    lookaheads = [(f"k 5, alpha {a:g}", partial(nqp.Lookahead, k=5, alpha=a)) for a in (0.2, 0.5, 0.8)]
    fewest = min(config.quadratic.members)
    nesterov = partial(late_phase, fewest, schedule=schedule, **_NESTEROV)
    results = [
        *done,
        _best("SGD, best of four other shapes", budget, problem, shapes),
        _best("SGD, one drop to lr/10", budget, problem, drops),
        _best("EMA", budget, problem, emas),
        _best("Lookahead", budget - budget % 5, problem, lookaheads),
        _best("Nesterov .9", budget, problem, [("", partial(nqp.SGD, **_NESTEROV))], limit),
        _best("Nesterov .9 annealed", budget, problem, [("", partial(nqp.SGD, schedule=schedule, **_NESTEROV))], limit),
        _best_start("late phase, Nesterov .9 annealed", budget, problem, {fewest: nesterov}, limit),
    ]
    for members in config.quadratic.members:
        at_once = partial(late_phase, members, start=budget % members)
        results.append(_best(f"late phase K = {members} from the beginning", budget, problem, [("", at_once)]))
    rows: list[list[str | int | float]] = [
        [entry.name, f"{entry.lr:.3g}", entry.setting, entry.loss]
        for entry in sorted(results, key=lambda entry: entry.loss)
    ]
    begin, end, final = config.quadratic.annealing
    text = (
        f"Expected loss after {budget} minibatches, n = {problem.directions}, each method at its own best learning rate"
        " (a grid up to the stability limit, then golden sections) and the best of its other settings; starts are"
        f" exact optima. Annealed: constant to {begin:.0%} of training, linear to {final:g} of the rate at {end:.0%}."
        " Late phase from the beginning is K-batch SGD."
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
    problem = _problem(config)
    members = config.quadratic.members
    schedule = _schedule(config.quadratic.annealing, budget)
    windows = sorted({max(1, round(share * budget)) for share in np.linspace(0.2, 1.0, 9)})
    swas = [(f"last {m}", partial(nqp.SWA, window=m)) for m in windows]
    late = {k: partial(late_phase, k) for k in members}
    scheduled = {k: partial(late_phase, k, schedule=schedule) for k in members}
    annealed = _best_start("late phase, annealed", budget, problem, scheduled)
    divided = {annealed.members: partial(_divided, annealed.members, schedule=schedule)}
    return [
        _best("SGD", budget, problem, [("", nqp.SGD)]),
        _best("SGD annealed", budget, problem, [("", partial(nqp.SGD, schedule=schedule))]),
        _best_start("late phase", budget, problem, late),
        annealed,
        _best_start("SGD lr/K, annealed", budget, problem, divided),
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

    def loss_of(build: Callable[[float], Method], lr: float) -> float:
        return loss_at(build(lr), problem, budget)

    tries = []
    for detail, build in settings:
        lr, loss = tune(partial(loss_of, build), limit)
        tries.append(Tuned(name, lr, detail, loss))
    return min(tries, key=lambda entry: entry.loss)


def _best_start(
    name: str,
    budget: int,
    problem: nqp.Problem,
    builds: Mapping[int, Callable[[float], nqp.LatePhase]],
    limit: float = _LIMIT,
) -> Tuned:
    """Tune the learning rate of late-phase training from its exact best start, and keep the best K."""

    def loss_of(build: Callable[[float], nqp.LatePhase], lr: float) -> float:
        return float(nqp.best_start(build(lr), problem, budget)[1].average)

    tries = []
    for members, build in builds.items():
        lr, loss = tune(partial(loss_of, build), limit)
        start, _ = nqp.best_start(build(lr), problem, budget)
        tries.append(Tuned(name, lr, f"K = {members}, T0 = {start}", loss, members))
    return min(tries, key=lambda entry: entry.loss)


def _divided(divisor: int, lr: float, schedule: nqp.LinearDecay) -> nqp.LatePhase:
    """SGD whose scheduled rate is divided by K at the start: late-phase training of one member at lr/K."""
    slow = lr / divisor / 2
    return nqp.LatePhase(1, slow, slow, 1.0, sgd_lr=lr, schedule=schedule)


def _problem(config: TheoryConfig) -> nqp.Problem:
    return nqp.Problem(nqp.power_law(config.quadratic.directions))


def _schedule(shape: tuple[float, float, float], budget: int) -> nqp.LinearDecay:
    begin, end, final = shape
    return nqp.LinearDecay(round(begin * budget), round(end * budget), final)
