"""Exact first and second moments of linear recursions with additive noise, all directions at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Moments(NamedTuple):
    """Mean and covariance of a state of d components in each of n independent directions.

    Attributes:
        mean: Shape (d, n).
        covariance: Shape (d, d, n).
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, mean: NDArray[np.float64], variance: NDArray[np.float64], size: int = 1) -> Moments:
        """Return the moments of a state whose first component is given and whose others are zero."""
        n = mean.size
        full_mean = np.zeros((size, n))
        covariance = np.zeros((size, size, n))
        full_mean[0] = mean
        covariance[0, 0] = variance
        return cls(full_mean, covariance)


class LinearMap(NamedTuple):
    r"""The map :math:`z \mapsto A z + \xi`, :math:`\mathrm{Cov}\,\xi = Q`, of a state z with d components.

    Means follow A m, covariances :math:`A P A^T + Q`. Q adds up and is never found as a difference, so
    nothing cancels however close A is to the identity.

    Attributes:
        transition: A, shape (d, d, n).
        noise: Q, shape (d, d, n).
    """

    transition: NDArray[np.float64]
    noise: NDArray[np.float64]

    def __call__(self, moments: Moments) -> Moments:
        """Return the moments after the map."""
        mean = _product(self.transition, moments.mean[:, None])[:, 0]
        return Moments(mean, _congruence(self.transition, moments.covariance) + self.noise)


class Repeated:
    """A map to be applied many times; it keeps its powers 1, 2, 4, ... so that t applications cost log t."""

    def __init__(self, once: LinearMap) -> None:
        self._powers = [once]

    def __call__(self, moments: Moments, times: int) -> Moments:
        """Return the moments after ``times`` applications."""
        for bit in range(times.bit_length()):
            if bit == len(self._powers):
                half = self._powers[-1]
                self._powers.append(_then(half, half))
            if times >> bit & 1:
                moments = self._powers[bit](moments)
        return moments


def _then(first: LinearMap, second: LinearMap) -> LinearMap:
    """Return the map that applies ``first`` and then ``second``."""
    noise = _congruence(second.transition, first.noise) + second.noise
    return LinearMap(_product(second.transition, first.transition), noise)


def _product(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply (d, d, n) by (d, e, n), direction by direction."""
    with np.errstate(over="ignore", invalid="ignore"):
        if left.shape[0] > 1:
            return np.asarray(np.einsum("ijn,jkn->ikn", left, right))
        product = left * right
        # Far beyond the stability limit a power overflows; 0 times it is still 0.
        return product if np.isfinite(left).all() else np.where(right == 0.0, 0.0, product)


def _congruence(matrix: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return A P A^T for (d, d, n) arrays."""
    half = _product(matrix, covariance)
    return _product(matrix, half.swapaxes(0, 1)).swapaxes(0, 1)
