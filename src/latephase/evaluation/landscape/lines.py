"""Loss and error along straight lines between weights, and the barriers on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least
from latephase.evaluation._result import Result
from latephase.evaluation.landscape.evaluator import Evaluate, LossAndError, statistics_used
from latephase.evaluation.landscape.states import State, check_states, combine, distance


@dataclass(frozen=True)
class Segment(Result):
    """The straight piece between two neighbouring stations of a line.

    Attributes:
        length: Euclidean distance of its ends, over all weights.
        loss_barrier: Height of the highest point above the chord between the ends' losses, at least 0.
        error_barrier: The same for the error.
    """

    length: float
    loss_barrier: float
    error_barrier: float


@dataclass(frozen=True)
class Line(Result):
    """Loss and error along a line of straight segments.

    Attributes:
        positions: Where each point lies: i + t is the fraction t of the way from station i to station i + 1.
        loss: The loss at each point.
        error: The error at each point.
        stations: Names of the stations.
        segments: Length and barriers of each segment; barriers are those on this grid of points.
        statistics: How BatchNorm's running statistics were handled at each point: "recomputed", "stored" (interpolated
            with the weights), "none" where there are none; "not said" by an `evaluate` of your own.
    """

    positions: tuple[float, ...]
    loss: tuple[float, ...]
    error: tuple[float, ...]
    stations: tuple[str, ...]
    segments: tuple[Segment, ...]
    statistics: str


def barrier(values: Sequence[float]) -> float:
    r"""Barrier height on a segment of equally spaced points.

    .. math:: \max_t\; f(t) - \big[(1 - t) f(0) + t f(1)\big]

    (Entezari, Sedghi, Saukh and Neyshabur, ICLR 2022; for ends of equal loss it is that of Frankle et al., ICML 2020).
    The ends lie on their chord, so it is never negative.

    Args:
        values: The function at the points, both ends included.

    Returns:
        The height.

    Raises:
        LatePhaseValueError: Fewer than two points.

    Example:
        >>> barrier([1.0, 4.0, 3.0])
        2.0
    """
    if len(values) < 2:
        raise LatePhaseValueError(f"barrier: {len(values)} points; it needs both ends at least")
    first, last, steps = values[0], values[-1], len(values) - 1
    return max(0.0, *(v - (first + (last - first) * i / steps) for i, v in enumerate(values)))


def line(states: Sequence[State], evaluate: Evaluate, points: int = 11, names: Sequence[str] | None = None) -> Line:
    """Loss and error from station to station, for example member, average, member.

    Every weight is interpolated linearly, shared weights stay exactly what they are, and so do the running statistics
    unless `evaluate` computes them anew (see `StateEvaluator`). Stations are evaluated as they are, once each.

    Args:
        states: The stations: at least two plain state dicts.
        evaluate: Tells loss and error at given weights, normally a `StateEvaluator`.
        points: Points on each segment, both ends included.
        names: Names of the stations; by default their numbers.

    Returns:
        The line, with the barrier of each segment.

    Raises:
        LatePhaseValueError: Fewer than two stations, states of different models, fewer than three points, or another
            number of names.

    Example:
        >>> import torch
        >>> a, b = {"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])}
        >>> hill = line([a, b], lambda s: LossAndError(1 - float(s["w"].square()), 0.0), points=5)
        >>> hill.loss, hill.segments[0].loss_barrier
        ((0.0, 0.75, 1.0, 0.75, 0.0), 1.0)
    """
    check_states("line", states, least=2)
    at_least("line: points", points, 3)
    labels = tuple(str(i) for i in range(len(states))) if names is None else tuple(names)
    if len(labels) != len(states):
        raise LatePhaseValueError(f"line: {len(labels)} names of {len(states)} stations; one each")
    reached = [evaluate(states[0])]
    positions, segments = [0.0], []
    for i, (start, end) in enumerate(pairwise(states)):
        piece: list[LossAndError] = [reached[-1]]
        for step in range(1, points):
            t = step / (points - 1)
            piece.append(evaluate(end if step == points - 1 else combine([start, end], [1 - t, t])))
            positions.append(i + t)
        reached.extend(piece[1:])
        heights = barrier([p.loss for p in piece]), barrier([p.error for p in piece])
        segments.append(Segment(distance(start, end), *heights))
    return Line(
        tuple(positions),
        tuple(p.loss for p in reached),
        tuple(p.error for p in reached),
        labels,
        tuple(segments),
        statistics_used(evaluate),
    )
