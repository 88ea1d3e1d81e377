"""The comparison's conventions: even split of the rate, mean base gradients, counts that are whole rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from scipy.optimize import minimize_scalar

from latephase import nqp


class Method(Protocol):
    """Anything of `latephase.nqp` with exact expected losses."""

    def expected_loss(self, problem: nqp.Problem, minibatches: int | Sequence[int]) -> nqp.Loss:
        """The losses after the given numbers of minibatches."""


def late_phase(members: int, lr: float, **options: Any) -> nqp.LatePhase:
    """Late-phase training at effective rate `lr`: split evenly, base gradients averaged over the members.

    Args:
        members: K.
        lr: Learning rate before the start and effective learning rate after it.
        **options: More arguments of `nqp.LatePhase`.

    Returns:
        The method.
    """
    return nqp.LatePhase(members, lr / 2, lr / 2, 1 / members, **options)


def loss_at(method: Method, problem: nqp.Problem, minibatches: int) -> float:
    """The averaged model's expected loss after some minibatches.

    Args:
        method: A method.
        problem: The problem.
        minibatches: One count.

    Returns:
        The loss.
    """
    return float(method.expected_loss(problem, minibatches).average)


def start_near(target: float, minibatches: int, members: int) -> int:
    """The start closest to a target that leaves whole rounds until the budget.

    Args:
        target: Desired T0.
        minibatches: Budget N.
        members: K.

    Returns:
        T0 in {N - K j}, between 0 and N.
    """
    rounds = round((minibatches - target) / members)
    return minibatches - members * min(max(rounds, 0), minibatches // members)


def log_counts(first: int, last: int, stride: int = 1, offset: int = 0, points: int = 160) -> list[int]:
    """Counts `offset + stride * j` spread evenly on a logarithmic axis.

    Args:
        first: Smallest count.
        last: Largest count.
        stride: Minibatches of a round.
        offset: Minibatches before the first round.
        points: About how many.

    Returns:
        Increasing counts.
    """
    wanted = np.geomspace(max(first, 1), last, points)
    rounds = np.unique(np.round((wanted[wanted >= offset] - offset) / stride).astype(int))
    counts = offset + stride * rounds
    return [int(count) for count in counts if 0 < count <= last]


def tune(loss_of: Callable[[float], float], limit: float) -> tuple[float, float]:
    """Find the learning rate with the lowest loss.

    A grid of ten values, then Brent's method between the neighbours of its best, to 0.2 % of the rate.

    Args:
        loss_of: Learning rate -> loss.
        limit: Largest learning rate to try; the smallest is a two-hundredth of it.

    Returns:
        The learning rate and its loss.
    """

    def loss(log_lr: float) -> float:
        return loss_of(float(np.exp(log_lr)))

    grid = np.linspace(np.log(limit / 200), np.log(limit), 10)
    values = [loss(point) for point in grid]
    best = int(np.argmin(values))
    bounds = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 2e-3})
    value, log_lr = min((float(found.fun), float(found.x)), (values[best], float(grid[best])))
    return float(np.exp(log_lr)), value
