"""A learning-rate schedule: constant, then a linear decay."""

from __future__ import annotations

from dataclasses import dataclass

from latephase.nqp import _checks


@dataclass(frozen=True)
class LinearDecay:
    r"""Learning rate that is constant, then falls linearly, then is constant again.

    The factor on every learning rate for the minibatch with index t = 0, 1, ... is

    .. math:: c_t = 1 \;(t < \text{begin}), \quad c_t = f \;(t \ge \text{end}), \quad
        c_t = 1 - (1 - f) \frac{t - \text{begin}}{\text{end} - \text{begin}} \;\text{between},

    as a scheduler that steps once per minibatch gives it. ``begin == end`` is a drop at that minibatch.

    Args:
        begin: First minibatch of the decay, >= 0.
        end: First minibatch at the final rate, >= ``begin``.
        final: f >= 0, the factor at the end. 0 stops training.

    Raises:
        ValueError: A bound is negative or not an integer, ``end`` < ``begin``, or ``final`` is negative.

    Example:
        >>> from latephase import nqp
        >>> nqp.LinearDecay(begin=100, end=180, final=0.01).factor(140)
        0.505
    """

    begin: int
    end: int
    final: float = 0.0

    def __post_init__(self) -> None:
        begin = _checks.whole_number("begin", self.begin, 0)
        _checks.whole_number("end", self.end, begin)
        _checks.real_number("final", self.final, at_least=0.0)

    def factor(self, minibatch: int) -> float:
        """Return the factor on the learning rate for the minibatch with this index, counted from 0.

        Args:
            minibatch: Its index.

        Returns:
            The factor, from 1 down.
        """
        if minibatch < self.begin:
            return 1.0
        if minibatch >= self.end:
            return float(self.final)
        return 1.0 - (1.0 - self.final) * (minibatch - self.begin) / (self.end - self.begin)


@dataclass(frozen=True)
class Clock:
    """Which factor each optimizer step of a phase uses.

    Step i of the phase takes the minibatches ``first + i * stride`` to ``first + (i + 1) * stride - 1`` and
    uses the factor of the last of them: the one at which the base weights step.
    """

    first: int
    stride: int
    schedule: LinearDecay | None

    def factor(self, step: int) -> float:
        """Return the factor of one step.

        Args:
            step: Its index.

        Returns:
            The factor, from 1 down.
        """
        if self.schedule is None:
            return 1.0
        return self.schedule.factor(self.first + (step + 1) * self.stride - 1)

    def stretches(self, begin: int, end: int) -> list[tuple[int, float]]:
        """Cut the steps ``begin`` to ``end - 1`` into (number of steps, factor) of constant factor."""
        if self.schedule is None:
            return [(end - begin, 1.0)] if end > begin else []
        # Steps at the full rate, steps of the decay one by one, and steps at the final rate.
        decay = min(max(self._first_step_at(self.schedule.begin), begin), end)
        final = min(max(self._first_step_at(self.schedule.end), begin), end)
        stretches = [(decay - begin, 1.0), *((1, self.factor(step)) for step in range(decay, final))]
        stretches.append((end - final, float(self.schedule.final)))
        return [stretch for stretch in stretches if stretch[0]]

    def _first_step_at(self, minibatch: int) -> int:
        """Return the first step whose last minibatch has this index or a later one."""
        return max(0, -(-(minibatch + 1 - self.first) // self.stride) - 1)
