"""Late-phase weights that multiply the base weights: linearised noise around a manifold of solutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.result import Loss
from latephase.nqp.sgd import SGD
from latephase.nqp.trajectory import Trajectory, propagate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from latephase.nqp.problem import Problem


@dataclass(frozen=True, eq=False)
class MultiplicativeLatePhase:
    r"""Algorithm 1 with members :math:`w_{k,i} = \theta_i \varphi_k`: one late-phase factor per group.

    Like a normalization layer's scale. The gradients are :math:`\varphi_k g_i` for :math:`\theta_i` and
    :math:`\sum_i \theta_i g_i` for :math:`\varphi_k`, so the moments do not close; what is offered is the
    linear-noise approximation (LNA), with a relative error of the order of the effective rate times the
    curvature: trust it up to ``sharpness`` 0.3. The solutions form a manifold
    :math:`\theta = w^* / \varphi`. The place :math:`\varphi` on it sets the effective learning rate, and
    two things move it: a far start (``landing``) and, slowly, noise (``drift``, towards ``balance``).
    Several groups are independent: add the losses of one problem each.

    Args:
        members: K >= 1. A round costs K minibatches.
        base_lr: :math:`\eta_\theta` >= 0.
        late_lr: :math:`\eta_\varphi` >= 0.
        base_gradient_scale: :math:`\gamma` > 0, the factor on the sum of the members' base gradients.
        optimum: w*, scalar or (n,). The problem's ``initial_mean`` is the mean of w - w*, so w = 0 at first
            is ``initial_mean = -optimum``.
        initial_phi: :math:`\varphi_0 \ne 0` at the start; :math:`\theta = w / \varphi_0` there.
        perturbation_variance: :math:`\sigma_0^2` >= 0 of the noise added to each :math:`\varphi_k` at the
            start.
        start: T0, minibatches of plain SGD on w before the members come to life.
        sgd_lr: Learning rate of that SGD; None is :math:`\eta_\theta \varphi_0^2`, the rate at which
            :math:`\theta` alone moves w.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(20), batch_size=16, initial_mean=-1.0)
        >>> late = nqp.MultiplicativeLatePhase(5, base_lr=0.2, late_lr=0.05, base_gradient_scale=1 / 5)
        >>> round(late.landing(problem), 4)  # from w = 0 the factor is dragged from 1 to here
        1.6707
        >>> [round(late.steady_state(problem, phi).average, 6) for phi in (1.0, 1.6707)]
        [0.003039, 0.007559]
    """

    members: int
    base_lr: float
    late_lr: float
    base_gradient_scale: float
    optimum: ArrayLike = 1.0
    initial_phi: float = 1.0
    perturbation_variance: float = 0.0
    start: int = 0
    sgd_lr: float | None = None

    def __post_init__(self) -> None:
        _checks.whole_number("members", self.members, 1)
        _checks.real_number("base_lr", self.base_lr, at_least=0.0)
        _checks.real_number("late_lr", self.late_lr, at_least=0.0)
        _checks.real_number("base_gradient_scale", self.base_gradient_scale, above=0.0)
        self._check_phi("initial_phi", self.initial_phi)
        _checks.real_number("perturbation_variance", self.perturbation_variance, at_least=0.0)
        _checks.whole_number("start", self.start, 0)
        if self.sgd_lr is not None:
            _checks.real_number("sgd_lr", self.sgd_lr, at_least=0.0)

    @property
    def plain_lr(self) -> float:
        """Learning rate of plain SGD before the start."""
        return self.base_lr * self.initial_phi**2 if self.sgd_lr is None else self.sgd_lr

    @property
    def summed_base_lr(self) -> float:
        r""":math:`\gamma K \eta_\theta`, the base rate on the members' mean gradient."""
        return self.base_gradient_scale * self.members * self.base_lr

    def optimum_of(self, problem: Problem) -> NDArray[np.float64]:
        """Return w* as an array of shape (n,).

        Args:
            problem: The problem.

        Returns:
            The optimum.
        """
        return _checks.vector("optimum", self.optimum, problem.directions, non_negative=False)

    def sharpness(self, problem: Problem, phi: float | None = None) -> float:
        r"""Largest eigenvalue of :math:`S = H^{1/2} M H^{1/2}` at a place on the solution manifold.

        :math:`M = \gamma K \eta_\theta \varphi^2 I + \eta_\varphi \theta \theta^T` with
        :math:`\theta = w^* / \varphi`. It plays the part of learning rate times curvature: the linearised
        dynamics are stable if it is below 2, which is necessary and not sufficient for the real ones; the
        LNA is good to a few percent up to 0.3.

        Args:
            problem: The noisy quadratic problem.
            phi: Place on the manifold; None is ``initial_phi``.

        Returns:
            The largest eigenvalue.

        Raises:
            ValueError: ``phi`` is 0 or not finite, or the optimum does not fit the problem.
        """
        return float(np.linalg.eigvalsh(self._preconditioned(problem, self._place(phi)))[-1])

    def steady_state(self, problem: Problem, phi: float | None = None) -> Loss:
        r"""Losses of the linear-noise approximation around a fixed place on the solution manifold.

        With :math:`S = U \mathrm{diag}(\sigma) U^T` and :math:`N = U^T \mathrm{diag}(h s / (BK)) U`,

        .. math:: L_\mathrm{avg} = \tfrac12 \sum_i \frac{\sigma_i^2 N_{ii}}{2 \sigma_i - \sigma_i^2}, \qquad
            L_\mathrm{mem} = L_\mathrm{avg} + \tfrac12 q (1 - 1/K) \frac{\eta_\varphi p}{q B (2 -
            \eta_\varphi q)},

        :math:`q = \theta^T H \theta`, :math:`p = \sum_i \theta_i^2 h_i^2 s_i`. Noise moves the place itself,
        slowly: see ``drift``.

        Args:
            problem: The noisy quadratic problem. Flat directions add nothing.
            phi: Place on the manifold; None is ``initial_phi``.

        Returns:
            The losses, as floats.

        Raises:
            ValueError: ``sharpness`` is 0 or at least 2 there, or ``phi`` is 0.
        """
        place = self._place(phi)
        eigenvalues, vectors = np.linalg.eigh(self._preconditioned(problem, place))
        sharpness = float(eigenvalues[-1])
        if not 0.0 < sharpness < 2.0:
            word = "unstable" if sharpness >= 2.0 else "no steady state"
            raise ValueError(f"{word}: sharpness = {sharpness:g} at phi = {place:g}; need 0 < sharpness < 2")
        # Rounding leaves tiny eigenvalues of either sign where S is singular; those directions have no noise.
        eigenvalues = np.maximum(eigenvalues, 0.0)
        noise = (vectors**2 * (problem.curvature * problem.noise / self.members)[:, None]).sum(axis=0)
        average = 0.5 * float(np.sum(eigenvalues * noise / (2.0 - eigenvalues)))
        theta = self.optimum_of(problem) / place
        q = float(np.sum(theta**2 * problem.curvature))
        p = float(np.sum((theta * problem.curvature) ** 2 * problem.noise))
        # With late_lr = 0 the differences keep what the perturbation gave them.
        spread = self.late_lr * p / (2.0 - self.late_lr * q) if self.late_lr else q * self.perturbation_variance
        return Loss(average, average + 0.5 * (1.0 - 1.0 / self.members) * spread)

    def landing(self, problem: Problem) -> float:
        r"""Place on the solution manifold that gradient flow reaches from the start.

        The flow conserves :math:`Q = \sum_i \theta_i^2 / (\gamma \eta_\theta) - K \varphi^2 / \eta_\varphi`.
        The start is the mean of w after ``start`` minibatches of SGD and ``initial_phi``.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The factor, with the sign of ``initial_phi``.

        Raises:
            ValueError: ``base_lr`` is 0, or w* is 0 wherever there is curvature.
        """
        if self.late_lr == 0.0:
            return self.initial_phi
        _checks.real_number("base_lr", self.base_lr, above=0.0)
        curved = problem.curvature > 0.0
        optimum = self.optimum_of(problem)
        (plain,) = SGD(self.plain_lr).moments(problem, [self.start])
        theta = ((optimum + plain.mean[0]) / self.initial_phi)[curved]
        base_rate = self.base_gradient_scale * self.base_lr
        conserved = np.sum(theta**2) / base_rate - self.members * self.initial_phi**2 / self.late_lr
        target = self._positive("optimum", float(np.sum(optimum[curved] ** 2))) / base_rate
        # The positive root y = phi^2 of K y^2 / late_lr + Q y - target = 0, in the form that does not cancel.
        root = np.sqrt(conserved**2 + 4.0 * self.members * target / self.late_lr)
        square = (
            2.0 * target / (conserved + root)
            if conserved > 0.0
            else (root - conserved) * self.late_lr / (2.0 * self.members)
        )
        return float(np.copysign(np.sqrt(square), self.initial_phi))

    def balance(self, problem: Problem) -> float:
        r"""Factor to which noise drags: :math:`\varphi_b^4 = \eta_\varphi P / (\gamma \eta_\theta G)`.

        :math:`G = \sum h^2 s`, :math:`P = \sum w^{*2} h^2 s`. With :math:`\gamma = 1/K` it grows as
        :math:`K^{1/4}`, and the effective learning rate at balance as :math:`\sqrt{K}`.

        Args:
            problem: The noisy quadratic problem.

        Returns:
            The positive factor of balance, independent of the batch size.

        Raises:
            ValueError: A learning rate is 0, or there is no gradient noise in the directions of w*.
        """
        base = _checks.real_number("base_lr", self.base_lr, above=0.0) * self.base_gradient_scale
        late = _checks.real_number("late_lr", self.late_lr, above=0.0)
        total, along = self._noise_powers(problem)
        return float((late * self._positive("noise_variance", along) / (base * total)) ** 0.25)

    def drift(
        self, problem: Problem, rounds: Sequence[int] | NDArray[np.integer], phi: float | None = None
    ) -> NDArray[np.float64]:
        r"""Noise-driven motion of the factor along the solution manifold, per round.

        .. math:: \frac{d \ln \varphi}{dt} = -\frac{K}{2B} \;
            \frac{\gamma \eta_\theta \varphi^2 G - \eta_\varphi \varphi^{-2} P}
            {\varphi^{-2} W / (\gamma \eta_\theta) + K \varphi^2 / \eta_\varphi}, \qquad W = \sum w^{*2},

        from the drift of the conserved Q of ``landing`` by the squared steps; integrated by Runge-Kutta with
        steps of one round. A slow motion: its rate is of second order in the learning rates.

        Args:
            problem: The noisy quadratic problem.
            rounds: Increasing numbers of rounds since the start.
            phi: Place at the start; None is ``initial_phi``.

        Returns:
            The factor after each number of rounds.

        Raises:
            ValueError: A learning rate is 0, or ``rounds`` do not increase.
        """
        counts, _ = _checks.counts("rounds", rounds)
        place = self._place(phi)
        base = _checks.real_number("base_lr", self.base_lr, above=0.0) * self.base_gradient_scale
        late = _checks.real_number("late_lr", self.late_lr, above=0.0)
        total, along = self._noise_powers(problem)
        curved = problem.curvature > 0.0
        weight = self._positive("optimum", float(np.sum(self.optimum_of(problem)[curved] ** 2)))

        def velocity(log_phi: float) -> float:
            square = float(np.exp(2.0 * log_phi))
            push = base * square * total - late * along / square
            return -0.5 * self.members * push / (weight / (square * base) + self.members * square / late)

        path, now, log_phi = [], 0, float(np.log(abs(place)))
        for count in counts:
            for _ in range(count - now):
                k1 = velocity(log_phi)
                k2 = velocity(log_phi + 0.5 * k1)
                k3 = velocity(log_phi + 0.5 * k2)
                log_phi += (k1 + 2.0 * k2 + 2.0 * k3 + velocity(log_phi + k3)) / 6.0
            now = count
            path.append(np.copysign(np.exp(log_phi), place))
        return np.array(path)

    def trajectory(self, problem: Problem, minibatches: int | Sequence[int]) -> Trajectory:
        """Expected losses and the factor along the noise-free path, with linearised noise around it.

        Args:
            problem: The noisy quadratic problem.
            minibatches: One count, or increasing counts: any up to ``start``, then ``start`` + K j.

        Returns:
            The losses and the mean factor per count; exact before the start, LNA after it.

        Raises:
            ValueError: A count is negative, not increasing, or not a whole number of rounds after ``start``.
        """
        return propagate(self, problem, minibatches)

    def _preconditioned(self, problem: Problem, phi: float) -> NDArray[np.float64]:
        root = np.sqrt(problem.curvature)
        scaled = root * self.optimum_of(problem) / phi
        return np.diag(self.summed_base_lr * phi**2 * problem.curvature) + self.late_lr * np.outer(scaled, scaled)

    def _noise_powers(self, problem: Problem) -> tuple[float, float]:
        """Return G/B and P/B, the gradient noise in all directions and weighted by w*."""
        power = problem.curvature**2 * problem.noise
        return float(power.sum()), float(np.sum(self.optimum_of(problem) ** 2 * power))

    def _place(self, phi: float | None) -> float:
        return self.initial_phi if phi is None else self._check_phi("phi", phi)

    @staticmethod
    def _check_phi(name: str, phi: float) -> float:
        phi = _checks.real_number(name, phi)
        if phi == 0.0:
            raise ValueError(f"{name} = 0 is not on the solution manifold; need {name} != 0")
        return phi

    @staticmethod
    def _positive(name: str, value: float) -> float:
        if value <= 0.0:
            raise ValueError(f"{name} = 0 in every curved direction; need a direction where it is not")
        return value
