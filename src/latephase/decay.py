r"""A fit to training losses: an asymptote, a noise floor that goes with the learning rate, and a decay.

.. math:: L(t) = A + F\, c_t + P\, d(\tau_t), \qquad d(\tau) = (1 + \tau / \tau_0)^{-p}

with c the learning rate relative to the largest of the losses fitted, and the training time \(\tau_t\), the sum of the
learning rates. A large p is an exponential, a small one almost a logarithm. A, F and P are linear: one small system at
each point of a grid over \(\tau_0\) and p gives the least squares, without a search that could get stuck.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

POWERS = tuple(2.0**k for k in (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4))
# How well such a curve describes mean losses at all, relative to their range: bins of many losses are more precise than
# that, and would otherwise have all the weight.
MODEL_ERROR = 0.005
# The learning rate must have changed by this much for the losses to tell its noise floor from the asymptote.
CHANGE = 0.1


@dataclass(frozen=True)
class Bin:
    """Losses of neighbouring minibatches, summed up.

    Args:
        count: how many.
        mean: their mean.
        variance: their variance, 0 for a single one.
        time: training time in the middle.
        lr: mean learning rate.
    """

    count: int
    mean: float
    variance: float
    time: float
    lr: float


@dataclass(frozen=True)
class Decay:
    """A fitted curve.

    Args:
        asymptote: A; where the learning rate has not changed the noise floor is part of it.
        noise: F at the largest learning rate; nan where the learning rate has not changed.
        progress: P, how much of the loss goes away with time.
        scale: tau_0.
        power: p.
        evidence: what it explains, as a weighted sum of squares, beyond a constant; chance makes it a few units.
    """

    asymptote: float
    noise: float
    progress: float
    scale: float
    power: float
    evidence: float

    def left(self, time: Tensor) -> Tensor:
        """d(tau), the part of the progress that is still to come."""
        return (1 + time / self.scale) ** -self.power


def fit(bins: Sequence[Bin]) -> Decay:
    """Fit the curve by weighted least squares, with F and P not negative.

    Args:
        bins: at least four, in order; the last with a time above 0.

    Returns:
        The best curve of the grid; one without progress where the losses do not fall.
    """
    counts, means, variances, times, rates = (
        torch.tensor([getattr(one, name) for one in bins], dtype=torch.float64)
        for name in ("count", "mean", "variance", "time", "lr")
    )
    rates = rates / rates.max()
    # A bin of one or two losses does not know its own variance.
    pooled = (variances * counts).sum() / counts.sum()
    spread = (means.max() - means.min()).clamp_min(torch.finfo(torch.float64).tiny ** 0.25)
    weights = 1 / (pooled / counts + (MODEL_ERROR * spread) ** 2)
    scales = torch.logspace(-3, 1, 25, dtype=torch.float64) * times[-1]
    scale, power = torch.meshgrid(scales, torch.tensor(POWERS, dtype=torch.float64), indexing="ij")
    scale, power = scale.reshape(-1, 1), power.reshape(-1, 1)
    decays = (1 + times / scale) ** -power
    constant = torch.ones_like(decays)
    moved = bool(1 - rates.min() > CHANGE)
    mean = float((weights * means).sum() / weights.sum())
    least = alone = float((weights * (means - mean).square()).sum())
    best = Decay(mean, math.nan, 0.0, float(times[-1]), 1.0, 0.0)
    for columns in ([constant, decays], [constant, decays, rates.expand_as(decays)])[: 1 + moved]:
        values, errors = _solve(torch.stack(columns, dim=-1), means, weights)
        errors = torch.where((values[:, 1:] >= 0).all(1), errors, torch.inf)
        index = int(errors.argmin())
        if float(errors[index]) < least:
            least = float(errors[index])
            asymptote, progress, *floor = values[index].tolist()
            noise = floor[0] if floor else (0.0 if moved else math.nan)
            best = Decay(asymptote, noise, progress, float(scale[index]), float(power[index]), alone - least)
    return best


def _solve(design: Tensor, means: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares at every point of the grid: coefficients (G, C) and weighted sums of squares (G,)."""
    weighted = design * weights.unsqueeze(-1)
    normal = weighted.mT @ design
    # Columns that are nearly the same (a decay that is over at once) get the smallest of their many answers.
    ridge = 1e-12 * normal.diagonal(dim1=1, dim2=2).mean(1)
    normal = normal + torch.diag_embed(ridge.unsqueeze(1).expand(-1, normal.shape[-1]))
    values = torch.linalg.solve(normal, weighted.mT @ means.unsqueeze(-1))
    residuals = means - (design @ values).squeeze(-1)
    return values.squeeze(-1), (weights * residuals.square()).sum(1)
