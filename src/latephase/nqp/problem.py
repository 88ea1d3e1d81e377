"""The noisy quadratic problem itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def power_law(n: int, power: float = 1.0) -> NDArray[np.float64]:
    r"""Curvatures :math:`h_i = i^{-p}`, i = 1..n: the usual stand-in for a network's Hessian spectrum.

    Args:
        n: Number of directions, at least 1.
        power: Exponent p >= 0; 1 is the value used throughout the noisy quadratic literature.

    Returns:
        Curvatures of shape (n,), largest first.

    Raises:
        ValueError: ``n`` < 1 or ``power`` negative.

    Example:
        >>> from latephase import nqp
        >>> nqp.power_law(4)
        array([1.        , 0.5       , 0.33333333, 0.25      ])
    """
    n = _checks.whole_number("n", n, 1)
    power = _checks.real_number("power", power, at_least=0.0)
    return np.arange(1, n + 1, dtype=np.float64) ** -power


class Problem:
    r"""Noisy quadratic problem with a diagonal Hessian.

    The loss of the weights w is :math:`L(w) = \tfrac12 \sum_i h_i (w_i - w_i^*)^2`, and a minibatch of size
    B gives the gradient :math:`g = h (w - w^* + \varepsilon)` with fresh
    :math:`\varepsilon_i \sim N(0, s_i / B)`: the minibatch moves the minimum. Only the error w - w* enters,
    so the minimum needs no place of its own. The directions are independent; units are those of w
    (variances: w squared), curvature is loss per w squared.

    Args:
        curvature: h, shape (n,), >= 0. 0 is a flat direction: it adds nothing to any loss.
        noise_variance: s, scalar or (n,), >= 0: variance of the noisy minimum at batch size 1. None is 1/h,
            for which the gradient noise has the covariance H; it needs h > 0.
        batch_size: B > 0. The noise variance is s/B.
        initial_mean: Mean of the initial error w - w*, scalar or (n,).
        initial_variance: Its variance, scalar or (n,), >= 0. The initial point is one and the same for all
            members.

    Raises:
        ValueError: A negative or non-finite entry, a shape that does not match ``curvature``, or a flat
            direction without ``noise_variance``.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(1000), batch_size=4)
        >>> problem.directions, float(problem.noise[1])
        (1000, 0.5)
    """

    def __init__(
        self,
        curvature: ArrayLike,
        noise_variance: ArrayLike | None = None,
        batch_size: float = 1.0,
        initial_mean: ArrayLike = 1.0,
        initial_variance: ArrayLike = 0.0,
    ) -> None:
        self.curvature = _checks.vector("curvature", curvature)
        n = self.curvature.size
        if noise_variance is None:
            if not self.curvature.all():
                flat = int(np.argmin(self.curvature))
                raise ValueError(
                    f"noise_variance = None means 1/curvature, but curvature[{flat}] = 0; need a finite"
                    " noise_variance of shape (n,) for problems with flat directions"
                )
            noise_variance = 1.0 / self.curvature
        self.noise_variance = _checks.vector("noise_variance", noise_variance, n)
        self.batch_size = _checks.real_number("batch_size", batch_size, above=0.0)
        self.initial_mean = _checks.vector("initial_mean", initial_mean, n, non_negative=False)
        self.initial_variance = _checks.vector("initial_variance", initial_variance, n)

    def __repr__(self) -> str:
        return f"Problem(directions={self.directions}, batch_size={self.batch_size:g})"

    @property
    def noise(self) -> NDArray[np.float64]:
        """Variance s/B of one minibatch's minimum, shape (n,)."""
        return self.noise_variance / self.batch_size

    @property
    def directions(self) -> int:
        """Number of directions n."""
        return self.curvature.size

    @property
    def max_curvature(self) -> float:
        """Largest curvature, which sets every stability limit."""
        return float(self.curvature.max())

    def loss(self, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> float:
        r"""Expected loss :math:`\tfrac12 \sum_i h_i (m_i^2 + v_i)` of an error with this mean and variance.

        Args:
            mean: m, shape (n,).
            variance: v, shape (n,).

        Returns:
            The expected loss; infinite where the moments have overflowed.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            loss = float(0.5 * np.dot(self.curvature, mean * mean + variance))
        # Only overflow far beyond the stability limit makes a moment undefined.
        return float("inf") if np.isnan(loss) else loss
