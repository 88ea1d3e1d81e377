"""Training losses summed up in bins, so that a long training takes little room and few transfers from the device."""

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from .decay import Bin

FETCH = 64
"""Losses are read from their device at most this many at a time."""


class LossBins:
    """Bins of neighbouring minibatches' losses, of which the last one is open."""

    def __init__(self) -> None:
        self.closed: list[Bin] = []
        self.time = 0.0  # learning rates, summed
        self._losses: list[Any] = []
        self._sums = [0.0] * 3  # of the open bin: losses, their sum, the sum of their squares
        self._shift: float | None = None
        self._steps, self._times, self._rates = 0, 0.0, 0.0

    @property
    def open(self) -> int:
        """Minibatches in the open bin."""
        return self._steps

    def add(self, loss: float | Tensor, lr: float) -> None:
        """Take in one minibatch."""
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        self._steps += 1
        self._times += self.time + lr / 2
        self._rates += lr
        self.time += lr
        if len(self._losses) >= FETCH:
            self._fetch()

    def close(self) -> None:
        """End the open bin."""
        self._fetch()
        count, total, squares = self._sums
        if self._shift is not None:
            mean = total / count
            variance = max(0.0, squares / count - mean * mean)
            middle, lr = self._times / self._steps, self._rates / self._steps
            self.closed.append(Bin(int(count), self._shift + mean, variance, middle, lr))
        self._sums, self._shift = [0.0] * 3, None
        self._steps, self._times, self._rates = 0, 0.0, 0.0

    def fell(self, bins: int) -> float:
        """By how much, at most, the mean loss fell from the bins before the last ones to those; no fit in it."""
        if len(self.closed) < 2 * bins:
            return math.inf
        (before, first), (after, second) = map(_mean, (self.closed[-2 * bins : -bins], self.closed[-bins:]))
        return before - after + 2 * math.sqrt(first + second)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists of them."""
        self._fetch()
        return {
            "closed": [list(astuple(one)) for one in self.closed],
            "open": [*self._sums, self._shift, self._steps, self._times, self._rates, self.time],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.closed = [Bin(*one) for one in state["closed"]]
        *sums, self._shift, self._steps, self._times, self._rates, self.time = state["open"]
        self._sums, self._losses = list(sums), []

    def _fetch(self) -> None:
        """Add the losses that wait to the sums of the open bin."""
        for loss in _numbers(self._losses):
            if math.isfinite(loss):
                # Around the first loss of the bin, so that small differences between large losses survive.
                self._shift = loss if self._shift is None else self._shift
                off = loss - self._shift
                self._sums = [a + b for a, b in zip(self._sums, (1, off, off * off), strict=True)]
        self._losses = []


def _mean(bins: Sequence[Bin]) -> tuple[float, float]:
    """The mean of the bins' losses, and the variance of that."""
    count = sum(one.count for one in bins)
    mean = sum(one.count * one.mean for one in bins) / count
    return mean, sum(one.count * one.variance for one in bins) / count**2


def _numbers(losses: list[Any]) -> list[float]:
    """Losses as numbers; tensors on a device in one transfer."""
    if losses and all(isinstance(loss, Tensor) for loss in losses):
        values: list[float] = torch.stack([loss.reshape(()).double() for loss in losses]).tolist()
        return values
    return [float(loss) for loss in losses]
