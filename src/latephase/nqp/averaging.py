"""Averages over the iterates of one SGD run: stochastic weight averaging, exponential moving average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.moments import LinearMap, Moments, Repeated
from latephase.nqp.result import Loss
from latephase.nqp.schedule import Clock
from latephase.nqp.sgd import SGD
from latephase.nqp.stability import require_steady_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from latephase.nqp.problem import Problem


@dataclass(frozen=True)
class SWA:
    r"""Stochastic weight averaging: the mean of the last m iterates of SGD, :math:`w_{T-m+1}, \dots, w_T`.

    The moments of the last iterate and of the sum over the window follow a linear recursion with two
    components, computed as such because the closed form cancels when lr h m is small. In the steady state,
    with :math:`v = x s / (B(2 - x))`, x = lr h and a = 1 - x, the variance of the average is

    .. math:: \frac{v}{m} \left[ \frac{1 + a}{1 - a} - \frac{2a(1 - a^m)}{m(1 - a)^2} \right].

    Args:
        lr: Learning rate >= 0 of SGD.
        window: m >= 1, or None for every iterate but the first, :math:`w_1, \dots, w_T`.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(10_000))
        >>> round(nqp.SWA(lr=0.5, window=100).steady_state(problem).average, 6)
        0.776631
    """

    lr: float
    window: int | None = None

    def __post_init__(self) -> None:
        _checks.real_number("lr", self.lr, at_least=0.0)
        if self.window is not None:
            _checks.whole_number("window", self.window, 1)

    @property
    def effective_lr(self) -> float:
        """Learning rate to compare with ``max_lr``: ``lr``."""
        return self.lr

    def max_lr(self, problem: Problem) -> float:
        """Return 2 / h_max, at and above which there is no steady state.

        Args:
            problem: The problem.

        Returns:
            The limit.
        """
        return SGD(self.lr).max_lr(problem)

    def expected_loss(self, problem: Problem, minibatches: int | Sequence[int]) -> Loss:
        """Exact expected loss of the average.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count T, or increasing counts: at least ``window`` - 1, and at least 1 without a
                window.

        Returns:
            The loss per count; ``members`` equals ``average``.

        Raises:
            ValueError: A count is negative, not increasing, or too small to fill the window.
        """
        counts, single = _checks.counts("minibatches", minibatches)
        firsts = self.first_iterates(counts)
        descent = SGD(self.lr).descent(problem)
        window = Repeated(self._window_map(descent.step()))
        initial = Moments.of(problem.initial_mean, problem.initial_variance)
        clock = Clock(0, 1, None)
        losses = []
        if self.window is None:
            (begin,) = descent.evolve(initial, clock, [1])
            now, sums = 1, _doubled(begin)
            for count in counts:
                now, sums = count, window(sums, count - now)
                losses.append(_loss_of_mean(problem, sums, count))
        else:
            last = self.window - 1
            begins = descent.evolve(initial, clock, firsts)
            losses = [_loss_of_mean(problem, window(_doubled(begin), last), last + 1) for begin in begins]
        loss = losses[0] if single else np.array(losses)
        return Loss(loss, loss)

    def steady_state(self, problem: Problem) -> Loss:
        """Expected loss of the average after infinitely many minibatches; 0 without a window.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The loss, as floats.

        Raises:
            ValueError: ``lr`` is 0 or at or above ``max_lr``.
        """
        require_steady_state("lr", self.lr, self.max_lr(problem))
        if self.window is None:
            return Loss(0.0, 0.0)
        descent = SGD(self.lr).descent(problem)
        begin = Moments.of(np.zeros(problem.directions), descent.stationary_variance())
        window = Repeated(self._window_map(descent.step()))
        loss = _loss_of_mean(problem, window(_doubled(begin), self.window - 1), self.window)
        return Loss(loss, loss)

    def first_iterates(self, counts: Sequence[int]) -> list[int]:
        """Return the index of the first averaged iterate for every count.

        Args:
            counts: Minibatches, increasing.

        Returns:
            The indices.

        Raises:
            ValueError: A count is smaller than the window.
        """
        smallest = 1 if self.window is None else self.window - 1
        if counts[0] < smallest:
            raise ValueError(f"minibatches = {counts[0]} is too small for window = {self.window}; need >= {smallest}")
        return [1 if self.window is None else count - self.window + 1 for count in counts]

    @staticmethod
    def _window_map(step: LinearMap) -> LinearMap:
        """Return the map of (iterate, sum of the iterates): the new iterate joins the sum."""
        a, q = step.transition[0, 0], step.noise[0, 0]
        zero, one = np.zeros_like(a), np.ones_like(a)
        return LinearMap(np.array([[a, zero], [a, one]]), np.array([[q, q], [q, q]]))


@dataclass(frozen=True)
class EMA:
    r"""Exponential moving average of SGD's iterates: :math:`y_0 = w_0,\; y' = \beta y + (1 - \beta) w'`.

    Computed by the exact recursion of the covariance of (w, y). In the steady state, with
    :math:`v = x s / (B(2 - x))`, x = lr h and a = 1 - x, the variance of y is
    :math:`v (1 - \beta)(1 + a\beta) / [(1 + \beta)(1 - a\beta)]`.

    Args:
        lr: Learning rate >= 0 of SGD.
        decay: :math:`\beta` in [0, 1); 0 is SGD itself.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(10_000))
        >>> round(nqp.EMA(lr=0.5, decay=0.99).steady_state(problem).average, 6)
        0.662927
    """

    lr: float
    decay: float

    def __post_init__(self) -> None:
        _checks.real_number("lr", self.lr, at_least=0.0)
        _checks.fraction("decay", self.decay)

    @property
    def effective_lr(self) -> float:
        """Learning rate to compare with ``max_lr``: ``lr``."""
        return self.lr

    def max_lr(self, problem: Problem) -> float:
        """Return 2 / h_max, at and above which there is no steady state.

        Args:
            problem: The problem.

        Returns:
            The limit.
        """
        return SGD(self.lr).max_lr(problem)

    def expected_loss(self, problem: Problem, minibatches: int | Sequence[int]) -> Loss:
        """Exact expected loss of the moving average.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count, or increasing counts.

        Returns:
            The loss per count; ``members`` equals ``average``.

        Raises:
            ValueError: A count is negative or the counts do not increase.
        """
        counts, single = _checks.counts("minibatches", minibatches)
        step = SGD(self.lr).descent(problem).step()
        a, q = step.transition[0, 0], step.noise[0, 0]
        b, c = np.full_like(a, self.decay), 1.0 - self.decay
        both = LinearMap(np.array([[a, np.zeros_like(a)], [c * a, b]]), np.array([[q, c * q], [c * q, c * c * q]]))
        advance = Repeated(both)
        now, moments = 0, _doubled(Moments.of(problem.initial_mean, problem.initial_variance))
        losses = []
        for count in counts:
            now, moments = count, advance(moments, count - now)
            losses.append(problem.loss(moments.mean[1], moments.covariance[1, 1]))
        loss = losses[0] if single else np.array(losses)
        return Loss(loss, loss)

    def steady_state(self, problem: Problem) -> Loss:
        """Expected loss of the moving average after infinitely many minibatches.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The loss, as floats.

        Raises:
            ValueError: ``lr`` is 0 or at or above ``max_lr``.
        """
        require_steady_state("lr", self.lr, self.max_lr(problem))
        x, b = self.lr * problem.curvature, self.decay
        variance = SGD(self.lr).descent(problem).stationary_variance()
        # 1 - a b as a sum of positive terms: (1 - b) + b x.
        shrunk = variance * (1.0 - b) * (1.0 + b * (1.0 - x)) / ((1.0 + b) * ((1.0 - b) + b * x))
        loss = problem.loss(np.zeros(problem.directions), shrunk)
        return Loss(loss, loss)


def _doubled(moments: Moments) -> Moments:
    """Return the moments of (w, w) from those of w."""
    mean, variance = moments.mean[0], moments.covariance[0, 0]
    return Moments(np.array([mean, mean]), np.array([[variance, variance], [variance, variance]]))


def _loss_of_mean(problem: Problem, sums: Moments, count: int) -> float:
    """Return the loss of the second component divided by ``count``."""
    mean: NDArray[np.float64] = sums.mean[1] / count
    return problem.loss(mean, sums.covariance[1, 1] / count**2)
