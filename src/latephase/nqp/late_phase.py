"""Late-phase weights that add to the base weights: the exactly solvable case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.descent import Descent, Momentum
from latephase.nqp.moments import Moments
from latephase.nqp.result import Loss
from latephase.nqp.schedule import Clock, LinearDecay
from latephase.nqp.stability import require_steady_state, stability_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latephase.nqp.problem import Problem


@dataclass(frozen=True)
class LatePhase:
    r"""Algorithm 1 with members :math:`w_k = \theta + \varphi_k`, solved exactly.

    A round draws K minibatches, one per member at fixed :math:`\theta`; each :math:`\varphi_k` steps with
    its own gradient :math:`g_k` at rate ``late_lr`` (:math:`\eta_\varphi`), then :math:`\theta` steps with
    :math:`\gamma \sum_k g_k` at rate ``base_lr`` (:math:`\eta_\theta`). The averaged model
    :math:`u = \theta + \bar\varphi` and the differences :math:`\delta_k = \varphi_k - \bar\varphi` decouple:

    .. math::
        u' &= u - \eta_\mathrm{eff} h (u + \bar\varepsilon), \quad
        \eta_\mathrm{eff} = \eta_\varphi + \gamma K \eta_\theta, \quad \mathrm{Var}\,\bar\varepsilon = s /
        (BK) \\ \delta_k' &= (1 - \eta_\varphi h)\,\delta_k - \eta_\varphi h (\varepsilon_k -
        \bar\varepsilon), \quad \mathrm{E}\,\delta_k^2 = (1 - 1/K)\, d_t,

    where d follows SGD at rate :math:`\eta_\varphi` and batch B from :math:`d_0 = \sigma_0^2`. So the
    averaged model is K-batch SGD at rate :math:`\eta_\mathrm{eff}` and the members add
    :math:`\tfrac12 (1 - 1/K) \sum_i h_i d_{t,i}`. The decomposition is exact also with equal momentum on all
    weights and with a schedule (derived for this module, tested against the literal (K+1)-dimensional
    covariance recursion and by simulation).

    Args:
        members: K >= 1. A round costs K minibatches.
        base_lr: :math:`\eta_\theta` >= 0.
        late_lr: :math:`\eta_\varphi` >= 0. 0 freezes the differences; ``base_lr`` 0 is a full ensemble.
        base_gradient_scale: :math:`\gamma` > 0, the factor on the sum of the members' base gradients: 1 or
            1/K.
        perturbation_variance: :math:`\sigma_0^2` >= 0 of the noise added to each :math:`\varphi_k` at the
            start.
        start: T0, minibatches of plain SGD before the members come to life.
        sgd_lr: Learning rate before ``start``; None is ``base_lr + late_lr``, the rate at which plain SGD
            moves :math:`\theta + \varphi`.
        momentum: Coefficient in [0, 1) on all weights, before and after the start.
        nesterov: Nesterov's momentum instead of the heavy ball.
        schedule: Factor on all learning rates, per minibatch since the very beginning. A round uses the
            factor of its last minibatch, at which the base weights step.
        optimizer_state: What the momentum buffers hold at the start: a ``"copy"`` of the plain run's, or
            ``"reset"``.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(10_000))
        >>> late = nqp.LatePhase(members=5, base_lr=0.25, late_lr=0.25, base_gradient_scale=1 / 5)
        >>> [round(float(loss), 6) for loss in late.steady_state(problem)]
        [0.257406, 0.758125]
    """

    members: int
    base_lr: float
    late_lr: float
    base_gradient_scale: float
    perturbation_variance: float = 0.0
    start: int = 0
    sgd_lr: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    schedule: LinearDecay | None = None
    optimizer_state: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        _checks.whole_number("members", self.members, 1)
        _checks.real_number("base_lr", self.base_lr, at_least=0.0)
        _checks.real_number("late_lr", self.late_lr, at_least=0.0)
        _checks.real_number("base_gradient_scale", self.base_gradient_scale, above=0.0)
        _checks.real_number("perturbation_variance", self.perturbation_variance, at_least=0.0)
        _checks.whole_number("start", self.start, 0)
        if self.sgd_lr is not None:
            _checks.real_number("sgd_lr", self.sgd_lr, at_least=0.0)
        Momentum(self.momentum, self.nesterov)
        if self.optimizer_state not in ("copy", "reset"):
            raise ValueError(f"optimizer_state = {self.optimizer_state!r} is unknown; need 'copy' or 'reset'")

    @property
    def effective_lr(self) -> float:
        r"""Learning rate of the averaged model, :math:`\eta_\varphi + \gamma K \eta_\theta`."""
        return self.late_lr + self.base_gradient_scale * self.members * self.base_lr

    @property
    def plain_lr(self) -> float:
        """Learning rate of plain SGD before the start."""
        return self.base_lr + self.late_lr if self.sgd_lr is None else self.sgd_lr

    def max_lr(self, problem: Problem) -> float:
        """Return the limit of ``effective_lr``; the members' differences have the larger limit.

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
            minibatches: One count, or increasing counts: any up to ``start``, then ``start`` + K j. At
                ``start`` itself the members are alive and perturbed.

        Returns:
            The losses per count; before the start ``members`` equals ``average``. Valid beyond the stability
            limit.

        Raises:
            ValueError: A count is negative, not increasing, or not a whole number of rounds after ``start``.
        """
        counts, single = _checks.counts("minibatches", minibatches)
        rounds = _checks.whole_rounds(counts, self.members, self.start)
        early = [count for count in counts if count < self.start]
        *plain, at_start = self.plain_descent(problem).evolve(
            self._initial(problem), Clock(0, 1, self.schedule), [*early, self.start]
        )
        average = [problem.loss(m.mean[0], m.covariance[0, 0]) for m in plain]
        members = list(average)
        mean_mode, differences = self.modes(problem)
        late = rounds[len(early) :]
        clock = Clock(self.start, self.members, self.schedule)
        spread = 1.0 - 1.0 / self.members
        zero = np.zeros(problem.directions)
        for u, d in zip(
            mean_mode.evolve(self.born(at_start), clock, late),
            differences.evolve(Moments.of(zero, zero + self.perturbation_variance, mean_mode.size), clock, late),
            strict=True,
        ):
            average.append(problem.loss(u.mean[0], u.covariance[0, 0]))
            members.append(average[-1] + spread * problem.loss(zero, d.covariance[0, 0]))
        if single:
            return Loss(average[0], members[0])
        return Loss(np.array(average), np.array(members))

    def steady_state(self, problem: Problem) -> Loss:
        r"""Expected losses after infinitely many rounds; under a schedule, at its final learning rate.

        With :math:`x = \eta_\mathrm{eff} h` and :math:`y = \eta_\varphi h`, without momentum:

        .. math:: L_\mathrm{avg} = \sum_i \frac{h_i x_i s_i}{2BK(2 - x_i)}, \qquad
            L_\mathrm{mem} = L_\mathrm{avg} + (1 - 1/K) \sum_i \frac{h_i y_i s_i}{2B(2 - y_i)}.

        With ``late_lr`` 0 the differences keep their initial variance. The start does not matter.

        Args:
            problem: The noisy quadratic problem. Flat directions add nothing.

        Returns:
            The losses, as floats.

        Raises:
            ValueError: ``effective_lr`` is 0 or at or above ``max_lr``.
        """
        final = 1.0 if self.schedule is None else self.schedule.final
        meaning = "late_lr + base_gradient_scale * members * base_lr"
        if self.schedule is not None:
            meaning = f"schedule.final * ({meaning})"
        limit = self.max_lr(problem)
        require_steady_state("effective_lr", final * self.effective_lr, limit, meaning=meaning)
        mean_mode, differences = self.modes(problem)
        zero = np.zeros(problem.directions)
        average = problem.loss(zero, mean_mode.stationary_variance(final))
        spread = differences.stationary_variance(final) if self.late_lr else zero + self.perturbation_variance
        return Loss(average, average + (1.0 - 1.0 / self.members) * problem.loss(zero, spread))

    def plain_descent(self, problem: Problem) -> Descent:
        """Return the recursion of plain SGD before the start.

        Args:
            problem: The problem.

        Returns:
            The recursion.
        """
        return Descent(problem.curvature, problem.noise, self.plain_lr, Momentum(self.momentum, self.nesterov))

    def modes(self, problem: Problem) -> tuple[Descent, Descent]:
        """Return the recursions of the averaged model and of the differences, one step per round.

        Args:
            problem: The problem.

        Returns:
            Both recursions.
        """
        momentum = Momentum(self.momentum, self.nesterov)
        mean_mode = Descent(problem.curvature, problem.noise / self.members, self.effective_lr, momentum)
        return mean_mode, Descent(problem.curvature, problem.noise, self.late_lr, momentum)

    def born(self, moments: Moments) -> Moments:
        """Return the averaged model's moments when the members come to life from the plain run's moments.

        The perturbations add their mean's variance. The averaged model's buffer is the rates' weighted mean
        of the base and the members' buffers, in units of ``effective_lr``; under "copy" each of them holds
        the plain run's.

        Args:
            moments: The plain run's.

        Returns:
            The averaged model's.
        """
        mean, covariance = moments.mean.copy(), moments.covariance.copy()
        covariance[0, 0] += self.perturbation_variance / self.members
        if self.momentum:
            copied = self.optimizer_state == "copy" and self.effective_lr > 0.0
            scale = (self.base_lr + self.late_lr) / self.effective_lr if copied else 0.0
            mean[1] *= scale
            covariance[1] *= scale
            covariance[:, 1] *= scale
        return Moments(mean, covariance)

    def _initial(self, problem: Problem) -> Moments:
        return Moments.of(problem.initial_mean, problem.initial_variance, 2 if self.momentum else 1)
