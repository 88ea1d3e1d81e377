"""How much of the training gradient is signal: what learns the data's distribution, not this sample of it."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .errors import LatePhaseValueError

BINS = 8
"""Bins that are looked at: the last doubling of the minibatches."""
EVERY = 2 ** (1 / 24)
"""A measurement is due at so many times the minibatches of the one before."""
LEAST = 16
"""Measurements in them before the first judgement."""


class SignalToNoise:
    r"""Sums up gradients' statistics, and says how far the training gradient stands out of its sampling noise.

    Over the M minibatches of a training set, whose gradients scatter with the covariance C around their mean G,
    \(\operatorname{tr} C / M\) is what a fresh sample of the same size would move G by. The ratio
    \(|G|^2 M / \operatorname{tr} C\) is 1 where the whole gradient is that noise, and 2 where noise and signal are
    equal (the evidence of Mahsereci, Balles, Lassner and Hennig, "Early stopping without a validation set", 2017,
    with the trace for the single variances).

    Args:
        per_epoch: M, minibatches of one pass over the training data.

    Attributes:
        due: The number of minibatches from which on the next measurement is wanted.
    """

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch
        self.due = 0
        self._open = [0.0] * 3  # measurements, tr C summed, |G|^2 summed
        self._bins: list[list[float]] = []

    def add(self, minibatches: int, noise: float, signal: float) -> None:
        """Add a measurement.

        Args:
            minibatches: When it was made.
            noise: tr C.
            signal: An unbiased estimate of |G|^2, which may be negative.
        """
        self.due = max(minibatches + 1, math.ceil(EVERY * minibatches))
        self._open = [a + b for a, b in zip(self._open, (1, noise, signal), strict=True)]

    def close(self) -> None:
        """End the open bin."""
        self._bins = [*self._bins[1 - BINS :], self._open]
        self._open = [0.0] * 3

    def ratio(self) -> float | None:
        """The ratio over the closed bins; None as long as they hold too few measurements, or no noise."""
        count, noise, signal = (sum(column) for column in zip(*self._bins, strict=True)) if self._bins else (0, 0, 0)
        return self.per_epoch * signal / noise if count >= LEAST and noise > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Lists of numbers."""
        return {"due": self.due, "open": list(self._open), "bins": [list(one) for one in self._bins]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.due = state["due"]
        self._open, self._bins = list(state["open"]), [list(one) for one in state["bins"]]


def gradient_statistics(first: Iterable[Tensor | None], second: Iterable[Tensor | None]) -> tuple[float, float]:
    r"""What `StartSignal.update` takes of gradients, from those of two minibatches at the same weights.

    With the gradients g = G + e and g' = G + e' of equally large minibatches,

    .. math:: \operatorname{tr} C \approx \tfrac12 \|g - g'\|^2, \qquad \|G\|^2 \approx g \cdot g',

    both without bias.

    Args:
        first: The gradients of one minibatch, one tensor for each parameter, None where it has none.
        second: Those of the other, in the same order.

    Returns:
        `gradient_noise`, the trace of the covariance of minibatch gradients, and `gradient_signal`, the square of the
        norm of their mean, which may come out negative.

    Raises:
        LatePhaseValueError: Other numbers or shapes of tensors, or none.

    Example:
        >>> import torch, latephase
        >>> latephase.gradient_statistics([torch.tensor([3.0, 1.0])], [torch.tensor([1.0, 1.0])])
        (2.0, 4.0)
    """
    ours, theirs = list(first), list(second)
    shapes = [[None if g is None else tuple(g.shape) for g in gradients] for gradients in (ours, theirs)]
    if shapes[0] != shapes[1] or all(shape is None for shape in shapes[0]):
        raise LatePhaseValueError(
            f"gradient_statistics: the shapes are {shapes[0]} and {shapes[1]}; use the gradients of one model, twice"
        )
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    noise = torch.stack([(a - b).double().square().sum() for a, b in both]).sum() / 2
    signal = torch.stack([(a.double() * b.double()).sum() for a, b in both]).sum()
    return float(noise), float(signal)
