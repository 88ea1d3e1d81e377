"""The comparison's conventions: even split of the rate, mean base gradients, counts that are whole rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

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


def tune(build: Callable[[float], Method], problem: nqp.Problem, minibatches: int, limit: float) -> tuple[float, float]:
    """Find the learning rate with the lowest expected loss after a budget.

    A grid of 14 values, then golden sections around its best to a thousandth in log lr.

    Args:
        build: Learning rate -> method.
        problem: The problem.
        minibatches: The budget.
        limit: Largest learning rate to try.

    Returns:
        The learning rate and its loss.
    """

    def loss(log_lr: float) -> float:
        return loss_at(build(float(np.exp(log_lr))), problem, minibatches)

    grid = np.linspace(np.log(limit / 200), np.log(limit), 14)
    values = [loss(point) for point in grid]
    best = int(np.argmin(values))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    share = (np.sqrt(5) - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-3:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = loss(right)
    candidates = [(at_left, left), (at_right, right), (values[best], float(grid[best]))]
    value, log_lr = min(candidates)
    return float(np.exp(log_lr)), value
