"""Lookahead: slow weights that follow k fast SGD steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.descent import log_contraction, powers
from latephase.nqp.result import Loss
from latephase.nqp.stability import require_steady_state, stability_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from latephase.nqp.problem import Problem


@dataclass(frozen=True)
class Lookahead:
    r"""Lookahead: after k SGD steps the slow weights move by ``alpha`` towards the fast ones.

    The fast weights then restart from the slow ones. Per direction, with a = 1 - lr h,
    :math:`q = (\mathrm{lr}\, h)^2 s / B`, :math:`z = \alpha(1 - a^k)`, A = 1 - z and t a multiple of k:

    .. math:: m_t = A^{t/k} m_0, \qquad
        v_t = A^{2t/k} v_0 + \alpha^2 q \sum_{j<k} a^{2j} \sum_{i<t/k} A^{2i}, \qquad
        v_\infty = \frac{\alpha^2 q}{z(2 - z)} \sum_{j<k} a^{2j}.

    It is stable when 0 < z < 2 for every h > 0; for odd k that can reach beyond lr h = 2.

    Args:
        lr: Learning rate >= 0 of the fast weights.
        k: Fast steps per slow step, >= 1.
        alpha: Size of the slow step in (0, 1]; 1 is SGD itself.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(10_000))
        >>> round(nqp.Lookahead(lr=0.5, k=5, alpha=0.5).steady_state(problem).average, 6)
        0.59369
    """

    lr: float
    k: int
    alpha: float

    def __post_init__(self) -> None:
        _checks.real_number("lr", self.lr, at_least=0.0)
        _checks.whole_number("k", self.k, 1)
        need = "0 < alpha <= 1"
        if _checks.real_number("alpha", self.alpha, above=0.0, limit=need) > 1.0:
            raise ValueError(f"alpha = {self.alpha:g} is out of range; need {need}")

    @property
    def effective_lr(self) -> float:
        """Learning rate to compare with ``max_lr``: ``lr``."""
        return self.lr

    def max_lr(self, problem: Problem) -> float:
        r"""Return the learning rate at and above which there is no steady state.

        :math:`z < 2` means :math:`a^k > 1 - 2/\alpha`: for odd k
        :math:`\mathrm{lr}\, h < 1 + (2/\alpha - 1)^{1/k}`; for even k :math:`z > 0` is the limit, lr h < 2.

        Args:
            problem: The problem.

        Returns:
            The limit.
        """
        bound = 1.0 + (2.0 / self.alpha - 1.0) ** (1.0 / self.k) if self.k % 2 else 2.0
        return stability_limit(bound, problem.max_curvature)

    def expected_loss(self, problem: Problem, minibatches: int | Sequence[int]) -> Loss:
        """Exact expected loss of the slow weights.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count, or increasing counts, each a multiple of ``k``.

        Returns:
            The loss per count; ``members`` equals ``average``.

        Raises:
            ValueError: A count is negative, not increasing, or not a multiple of ``k``.
        """
        counts, single = _checks.counts("minibatches", minibatches)
        slow_step, noise = self._slow(problem)
        losses = []
        for steps in _checks.whole_rounds(counts, self.k):
            mean, variance = problem.initial_mean, problem.initial_variance
            if steps:
                power, total = powers(slow_step, steps)
                with np.errstate(over="ignore", invalid="ignore"):
                    mean = np.where(mean == 0.0, 0.0, power * mean)
                    kept = np.where(variance == 0.0, 0.0, power * power * variance)
                    variance = kept + np.where(noise == 0.0, 0.0, noise * total)
            losses.append(problem.loss(mean, variance))
        loss = losses[0] if single else np.array(losses)
        return Loss(loss, loss)

    def steady_state(self, problem: Problem) -> Loss:
        """Expected loss of the slow weights after infinitely many minibatches.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The loss, as floats.

        Raises:
            ValueError: ``lr`` is 0 or at or above ``max_lr``.
        """
        require_steady_state("lr", self.lr, self.max_lr(problem))
        z, noise = self._slow(problem)
        moving = z > 0.0
        variance = np.divide(noise, z * (2.0 - z), out=np.zeros_like(z), where=moving)
        loss = problem.loss(np.zeros(problem.directions), variance)
        return Loss(loss, loss)

    def _slow(self, problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return z and the noise variance of one slow step."""
        x = self.lr * problem.curvature
        power, total = powers(x, self.k)
        # 1 - a^k would cancel where a^k is close to 1: for small x, and for even k near x = 2.
        positive = (x < 1.0) | (self.k % 2 == 0)
        with np.errstate(over="ignore"):
            gap = np.where(positive, -np.expm1(self.k * log_contraction(x)), 1.0 - power)
        return self.alpha * gap, self.alpha**2 * x * x * problem.noise * total
