"""Plain and K-batch stochastic gradient descent, with momentum and a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.descent import Descent, Momentum
from latephase.nqp.moments import Moments
from latephase.nqp.result import Loss
from latephase.nqp.schedule import Clock, LinearDecay
from latephase.nqp.stability import require_steady_state, stability_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latephase.nqp.problem import Problem


@dataclass(frozen=True)
class SGD:
    r"""Stochastic gradient descent; with ``batch_multiplier`` K the K-batch baseline.

    Per direction, with x = lr h, a = 1 - x, noise variance s/(B K) and t steps of K minibatches each:

    .. math:: m_t = a^t m_0, \qquad v_t = a^{2t} v_0 + x^2 \frac{s}{BK} \frac{1 - a^{2t}}{x(2 - x)},

    so the steady state is :math:`v_\infty = x s / (B K (2 - x))` and needs 0 < lr h_max < 2 (the noisy
    quadratic model). Momentum follows ``torch.optim.SGD`` (dampening 0) and a schedule scales the learning
    rate at each step; both are exact, by the recursion of mean and covariance of the weight and its buffer.
    The limits are then :math:`x < 2(1 + \mu)` (heavy ball) and :math:`x < 2(1 + \mu)/(1 + 2\mu)` (Nesterov).

    Args:
        lr: Learning rate >= 0.
        batch_multiplier: K >= 1; one step averages the gradients of K minibatches and costs K minibatches.
        momentum: :math:`\mu` in [0, 1).
        nesterov: Nesterov's momentum instead of the heavy ball.
        schedule: Factor on the learning rate per minibatch; None is constant. A step of K minibatches uses
            the factor of its last one.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem([1.0], initial_mean=2.0)
        >>> nqp.SGD(lr=0.2).expected_loss(problem, [0, 1]).average
        array([2. , 1.3])
    """

    lr: float
    batch_multiplier: int = 1
    momentum: float = 0.0
    nesterov: bool = False
    schedule: LinearDecay | None = None

    def __post_init__(self) -> None:
        _checks.real_number("lr", self.lr, at_least=0.0)
        _checks.whole_number("batch_multiplier", self.batch_multiplier, 1)
        Momentum(self.momentum, self.nesterov)

    @property
    def effective_lr(self) -> float:
        """Learning rate to compare with ``max_lr``: ``lr``."""
        return self.lr

    def max_lr(self, problem: Problem) -> float:
        """Return the learning rate at and above which there is no steady state.

        Args:
            problem: The problem.

        Returns:
            The limit.
        """
        return stability_limit(Momentum(self.momentum, self.nesterov).limit, problem.max_curvature)

    def expected_loss(self, problem: Problem, minibatches: int | Sequence[int]) -> Loss:
        """Exact expected loss after the given numbers of minibatches.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count, or increasing counts, each a multiple of ``batch_multiplier``.

        Returns:
            The loss per count; ``members`` equals ``average``. Valid, and growing, beyond the stability
            limit too.

        Raises:
            ValueError: A count is negative, not increasing, or not a whole number of steps.
        """
        counts, single = _checks.counts("minibatches", minibatches)
        steps = _checks.whole_rounds(counts, self.batch_multiplier)
        losses = [problem.loss(m.mean[0], m.covariance[0, 0]) for m in self.moments(problem, steps)]
        loss = losses[0] if single else np.array(losses)
        return Loss(loss, loss)

    def steady_state(self, problem: Problem) -> Loss:
        """Expected loss after infinitely many minibatches; under a schedule, at its final learning rate.

        Args:
            problem: The noisy quadratic problem. Flat directions add nothing.

        Returns:
            The loss, as floats.

        Raises:
            ValueError: The learning rate is 0 or at or above ``max_lr``.
        """
        final = 1.0 if self.schedule is None else self.schedule.final
        name = "lr" if self.schedule is None else "lr * schedule.final"
        require_steady_state(name, final * self.lr, self.max_lr(problem))
        variance = self.descent(problem).stationary_variance(final)
        loss = problem.loss(np.zeros(problem.directions), variance)
        return Loss(loss, loss)

    def moments(self, problem: Problem, steps: Sequence[int]) -> Iterator[Moments]:
        """Yield the exact moments of the error (and its buffer) after increasing numbers of steps.

        Args:
            problem: The problem.
            steps: Numbers of steps, increasing.

        Yields:
            The moments after each number.
        """
        descent = self.descent(problem)
        initial = Moments.of(problem.initial_mean, problem.initial_variance, descent.size)
        return descent.evolve(initial, Clock(0, self.batch_multiplier, self.schedule), steps)

    def descent(self, problem: Problem) -> Descent:
        """Return the recursion of one step, the form in which other methods build on this one.

        Args:
            problem: The problem.

        Returns:
            The recursion.
        """
        momentum = Momentum(self.momentum, self.nesterov)
        return Descent(problem.curvature, problem.noise / self.batch_multiplier, self.lr, momentum)
