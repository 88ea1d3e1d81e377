r"""Stochastic gradient descent as a linear map with noise: the building block of every method.

Plain SGD with learning rate r on curvature h has, with x = r h and a = 1 - x,

.. math:: m_t = a^t m_0, \qquad v_t = a^{2t} v_0 + x^2 \frac{s}{B} \sum_{j<t} a^{2j}.

Momentum, as ``torch.optim.SGD`` (dampening 0) has it, adds the buffer b as a second component:

.. math:: b' = \mu b + g, \qquad w' = w - r b' \;\text{(heavy ball)}, \quad
    w' = w - r (g + \mu b') \;\text{(Nesterov)},

with :math:`g = h (w + \varepsilon)`. The formulas without momentum are those of the noisy quadratic model;
those with momentum were derived for this module from the recursion above and are tested against its Lyapunov
equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.moments import LinearMap, Moments, Repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from latephase.nqp.schedule import Clock


@dataclass(frozen=True)
class Momentum:
    """Momentum coefficient and kind, checked as torch checks them."""

    coefficient: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _checks.fraction("momentum", self.coefficient)
        if self.nesterov and self.coefficient == 0.0:
            raise ValueError("nesterov = True needs momentum > 0, momentum = 0")

    @property
    def limit(self) -> float:
        """Bound on rate * curvature below which the recursion is stable (Jury's conditions)."""
        mu = self.coefficient
        return 2.0 * (1.0 + mu) / (1.0 + 2.0 * mu) if self.nesterov else 2.0 * (1.0 + mu)


@dataclass(frozen=True, eq=False)
class Descent:
    """SGD at one rate with one noise level in all directions.

    Attributes:
        curvature: h, shape (n,).
        noise: Variance of the noisy minimum per step, shape (n,).
        rate: Learning rate r >= 0.
        momentum: Momentum of the steps.
    """

    curvature: NDArray[np.float64]
    noise: NDArray[np.float64]
    rate: float
    momentum: Momentum

    @property
    def size(self) -> int:
        """Number of components of the state: the weight, and with momentum its buffer."""
        return 2 if self.momentum.coefficient else 1

    def step(self, factor: float = 1.0) -> LinearMap:
        """Return the map of one step at ``factor`` times the rate."""
        h, mu = self.curvature, self.momentum.coefficient
        rate = factor * self.rate
        x = rate * h
        if self.size == 1:
            return LinearMap((1.0 - x)[None, None], (x * x * self.noise)[None, None])
        # w' = w - rate * (gradient_weight * g + buffer_weight * b) in both kinds of momentum.
        gradient_weight, buffer_weight = (1.0 + mu, mu * mu) if self.momentum.nesterov else (1.0, mu)
        buffer = np.full_like(h, -rate * buffer_weight)
        transition = np.array([[1.0 - gradient_weight * x, buffer], [h, np.full_like(h, mu)]])
        response = np.array([-gradient_weight * x, h])
        return LinearMap(transition, response[:, None] * response[None, :] * self.noise)

    def repeated(self, factor: float = 1.0) -> Callable[[Moments, int], Moments]:
        """Return the function that takes moments through a number of steps at ``factor`` times the rate."""
        if self.size > 1:
            return Repeated(self.step(factor))
        x = factor * self.rate * self.curvature
        return lambda moments, count: self._closed_form(x, count)(moments) if count else moments

    def _closed_form(self, x: NDArray[np.float64], count: int) -> LinearMap:
        power, total = powers(x, count)
        return LinearMap(power[None, None], _noise(x * x * self.noise, total)[None, None])

    def stationary_variance(self, factor: float = 1.0) -> NDArray[np.float64]:
        r"""Variance of the weight in the steady state, shape (n,); the caller has checked stability.

        With x = rate h and :math:`\mu` the momentum: plain :math:`x s / (2 - x)`, heavy ball
        :math:`x s (1 + \mu) / [(1 - \mu)(2(1 + \mu) - x)]`, Nesterov
        :math:`x s [1 + \mu + x \mu (1 + 2\mu)] / [(1 - \mu(1 - x))(2(1 + \mu) - x(1 + 2\mu))]`.
        """
        x = factor * self.rate * self.curvature
        mu = self.momentum.coefficient
        if self.momentum.nesterov:
            numerator = 1.0 + mu + x * mu * (1.0 + 2.0 * mu)
            denominator = (1.0 - mu + mu * x) * (2.0 * (1.0 + mu) - x * (1.0 + 2.0 * mu))
            return x * self.noise * numerator / denominator
        return x * self.noise * (1.0 + mu) / ((1.0 - mu) * (2.0 * (1.0 + mu) - x))

    def evolve(self, moments: Moments, clock: Clock, steps: Sequence[int]) -> Iterator[Moments]:
        """Yield the moments after each of the increasing numbers of ``steps``."""
        now, factor = 0, 1.0
        advance = self.repeated()
        for count in steps:
            for stretch, new_factor in clock.stretches(now, count):
                if stretch == 1:  # a step of the decay: its rate will not come back
                    moments = self.step(new_factor)(moments)
                    continue
                if new_factor != factor:
                    factor, advance = new_factor, self.repeated(new_factor)
                moments = advance(moments, stretch)
            now = count
            yield moments


def log_contraction(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log|1 - x| without cancellation for x near 0 and near 2; -inf at x = 1."""
    with np.errstate(divide="ignore"):
        return np.log1p(np.where(x < 1.0, -x, x - 2.0))


def powers(x: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Return :math:`a^t` and :math:`\sum_{j<t} a^{2j}` for a = 1 - x and t = ``count`` >= 1.

    The sum is :math:`(1 - a^{2t}) / (1 - a^2)` with :math:`1 - a^2 = x(2 - x)` and
    :math:`1 - a^{2t} = -\mathrm{expm1}(2t \log|a|)`, and t where |a| = 1.
    """
    exponent = count * log_contraction(x)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        power = np.exp(exponent)
        if count % 2:
            power = np.where(x > 1.0, -power, power)
        total = np.expm1(2.0 * exponent) / (x * (x - 2.0))
    return power, np.where((x == 0.0) | (x == 2.0), float(count), total)


def _noise(step: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply the noise of one step by the number of steps that it survives; no noise stays no noise."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(step == 0.0, 0.0, step * total)
