"""K independent runs from one initial point, averaged in weight space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latephase.nqp import _checks
from latephase.nqp.late_phase import LatePhase
from latephase.nqp.stability import require_steady_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latephase.nqp.problem import Problem
    from latephase.nqp.result import Loss


@dataclass(frozen=True)
class Ensemble:
    r"""The full ensemble: every weight has K members, there are no base weights.

    K independent SGD runs start from the same initial point and their weights are averaged. It is additive
    late-phase training with ``base_lr`` 0, and that is how it is computed: the average follows K-batch SGD,
    with noise s/(BK) but an initial variance that is not divided by K, and each member follows plain SGD.

    Args:
        lr: Learning rate >= 0 of every run.
        members: K >= 1. A round of one step per run costs K minibatches.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> loss = nqp.Ensemble(lr=0.2, members=10).steady_state(nqp.Problem([1.0]))
        >>> round(loss.members / loss.average, 12)
        10.0
    """

    lr: float
    members: int

    def __post_init__(self) -> None:
        _checks.real_number("lr", self.lr, at_least=0.0)
        _checks.whole_number("members", self.members, 1)

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
        return self._late_phase.max_lr(problem)

    def expected_loss(self, problem: Problem, minibatches: int | Sequence[int]) -> Loss:
        """Exact expected loss of the averaged weights and of a single run.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count, or increasing counts, each a multiple of ``members``.

        Returns:
            The losses per count.

        Raises:
            ValueError: A count is negative, not increasing, or not a whole number of rounds.
        """
        return self._late_phase.expected_loss(problem, minibatches)

    def steady_state(self, problem: Problem) -> Loss:
        """Expected losses after infinitely many rounds: v/K for the average, v for a member.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The losses, as floats.

        Raises:
            ValueError: ``lr`` is 0 or at or above ``max_lr``.
        """
        require_steady_state("lr", self.lr, self.max_lr(problem))
        return self._late_phase.steady_state(problem)

    @property
    def _late_phase(self) -> LatePhase:
        return LatePhase(self.members, base_lr=0.0, late_lr=self.lr, base_gradient_scale=1.0)
