r"""The quadratic model of a loss around a point, and what `latephase.nqp` predicts from it.

A scheme with effective rates :math:`p_i` moves the averaged model by :math:`u' = u - P (g + H (u - c) + \xi)` with
P = diag(p). In :math:`z = (P/\eta)^{-1/2} (u - c)` this is SGD at the one rate :math:`\eta` on the Hessian
:math:`(P/\eta)^{1/2} H (P/\eta)^{1/2}`; its eigenvectors are independent directions as far as the loss is concerned, so
the prediction is exact for the quadratic, whichever weights are late-phase. (Derived for this module.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latephase import nqp
from latephase.experiments.real_network.objective import Objective
from latephase.experiments.real_network.schemes import Scheme

# Curvatures below this share of the largest are taken as zero: the negative ones, and those too flat to matter.
_FLAT = 1e-6


@dataclass(frozen=True)
class Quadratic:
    """Second-order expansion of the loss, with the noise of the gradient there.

    Attributes:
        centre: The point c, (n,).
        loss: Loss at c.
        gradient: Gradient at c, (n,).
        hessian: Hessian at c, (n, n).
        deviations: Single samples' gradients minus their mean, (N, n); their second moment is the noise at batch
            size 1.
    """

    centre: Tensor
    loss: float
    gradient: Tensor
    hessian: Tensor
    deviations: Tensor

    def losses(self, weights: Tensor) -> Tensor:
        """The quadratic's own loss.

        Args:
            weights: (R, n).

        Returns:
            (R,).
        """
        error = weights - self.centre
        return self.loss + error @ self.gradient + 0.5 * ((error @ self.hessian) * error).sum(-1)


def expand(objective: Objective, centre: Tensor) -> Quadratic:
    """Expand a loss around a point.

    Args:
        objective: The loss.
        centre: The point, (n,).

    Returns:
        The expansion.
    """
    value = float(objective.losses(centre[None])[0])
    gradient, hessian = objective.gradient(centre), objective.hessian(centre)
    return Quadratic(centre, value, gradient, hessian, objective.deviations(centre))


@dataclass(frozen=True)
class Directions:
    """The independent directions of a quadratic under a scheme, steepest first.

    Attributes:
        curvature: Eigenvalues, (n,); those below a millionth of the largest, and negative ones, are set to 0.
        negative: How many were negative.
        slope: Gradient at the centre along them, (n,).
        noise: Variance of one sample's gradient along them, (n,).
        offset: Start minus centre along them, (n,).
        basis: What projects weights minus centre on them, (n, n).
        lr: Learning rate, the same along all of them.
        loss: Loss at the centre.
    """

    curvature: NDArray[np.float64]
    negative: int
    slope: NDArray[np.float64]
    noise: NDArray[np.float64]
    offset: NDArray[np.float64]
    basis: Tensor
    lr: float
    loss: float

    @property
    def curved(self) -> NDArray[np.bool_]:
        """Which directions have a minimum."""
        return self.curvature > 0.0

    def problem(self, batch_size: int) -> nqp.Problem:
        """The noisy quadratic problem of the curved directions.

        Args:
            batch_size: Samples in a minibatch.

        Returns:
            The problem; its initial error is the start minus the minimum along each direction.
        """
        h = self.curvature[self.curved]
        error = self.offset[self.curved] + self.slope[self.curved] / h
        return nqp.Problem(h, self.noise[self.curved] / h**2, batch_size, initial_mean=error)

    def losses(self, members: int, batch_size: int, counts: Sequence[int]) -> NDArray[np.float64]:
        """Expected loss of the averaged model.

        Args:
            members: K of the scheme.
            batch_size: Samples in a minibatch.
            counts: Minibatches, whole rounds.

        Returns:
            The loss at each count.
        """
        curved = self.curved
        lowest = self.loss - 0.5 * float(np.sum(self.slope[curved] ** 2 / self.curvature[curved]))
        # Along a flat direction there is nothing but the slope.
        slope, start = self.slope[~curved], self.offset[~curved]
        rounds = np.array(counts) / members
        level = lowest + float(slope @ start) - self.lr * rounds * float(slope @ slope)
        return level + np.asarray(nqp.SGD(self.lr, members).expected_loss(self.problem(batch_size), counts).average)

    def noise_part(self, members: int, batch_size: int, counts: Sequence[int]) -> NDArray[np.float64]:
        """What noise adds to the expected loss of the averaged model, along each direction.

        Args:
            members: K of the scheme.
            batch_size: Samples in a minibatch.
            counts: Minibatches, whole rounds.

        Returns:
            (counts, n): half the curvature times the variance.
        """
        steps = [count // members for count in counts]
        moments = nqp.SGD(self.lr, members).moments(self.problem(batch_size), steps)
        part = np.zeros((len(counts), len(self.curvature)))
        part[:, self.curved] = [0.5 * self.curvature[self.curved] * m.covariance[0, 0] for m in moments]
        return part


def directions(quadratic: Quadratic, rates: Tensor, start: Tensor, deviations: Tensor | None = None) -> Directions:
    """Find the independent directions of a scheme.

    Args:
        quadratic: The expansion.
        rates: Learning rate of every weight of the averaged model, (n,), > 0.
        start: Where the training begins, (n,).
        deviations: Other single samples' gradients for the noise, (samples, n); None takes the expansion's own.

    Returns:
        The directions.
    """
    lr = float(rates.min())
    root = (rates / lr).sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * quadratic.hessian * root)
    values, vectors = values.flip(0), vectors.flip(1)
    negative = int((values < 0).sum())
    curvature = torch.where(values < _FLAT * values[0], 0.0, values)
    along = root[:, None] * vectors
    basis = vectors / root[:, None]
    spread = quadratic.deviations if deviations is None else deviations
    return Directions(
        curvature.numpy(),
        negative,
        (quadratic.gradient @ along).numpy(),
        (spread @ along).square().mean(0).numpy(),
        ((start - quadratic.centre) @ basis).numpy(),
        basis,
        lr,
        quadratic.loss,
    )


def member_excess(quadratic: Quadratic, scheme: Scheme, batch_size: int, counts: Sequence[int]) -> NDArray[np.float64]:
    """What a member's expected loss lies above the averaged model's.

    The differences between members live in the late-phase weights alone, and follow SGD there at the late rates and at
    the batch size of one member.

    Args:
        quadratic: The expansion.
        scheme: How it is trained.
        batch_size: Samples in a minibatch.
        counts: Minibatches, whole rounds.

    Returns:
        The excess at each count.
    """
    late = scheme.late_lr > 0
    if not bool(late.any()):
        return np.zeros(len(counts))
    centre = quadratic.centre[late]
    block = Quadratic(
        centre,
        quadratic.loss,
        torch.zeros_like(centre),
        quadratic.hessian[late][:, late],
        quadratic.deviations[:, late],
    )
    found = directions(block, scheme.late_lr[late], centre)
    rounds = [count // scheme.members for count in counts]
    return (1.0 - 1.0 / scheme.members) * found.noise_part(1, batch_size, rounds).sum(1)
