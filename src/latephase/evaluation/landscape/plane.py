"""Loss and error on the plane through three members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least
from latephase.evaluation._result import Result
from latephase.evaluation.landscape.evaluator import Evaluate, statistics_used
from latephase.evaluation.landscape.states import State, check_states, combine, distance, inner


@dataclass(frozen=True)
class Plane(Result):
    """Loss and error on a grid in the plane through three sets of weights.

    Lengths are Euclidean distances over all weights (not the running statistics).

    Attributes:
        x: Coordinates of the grid's columns; the first member is at 0, the second on the positive half of the axis.
        y: Coordinates of its rows; the third member is at a positive one.
        loss: Loss, loss[row][column].
        error: Error, error[row][column].
        members: Coordinates (x, y) of the three.
        average: Where the average projects to, None if none was given.
        average_distance: How far the average lies from the plane, None if none was given.
        statistics: How BatchNorm's running statistics were handled at each point: "recomputed", "stored" (interpolated
            with the weights), "none" where there are none; "not said" by an `evaluate` of your own.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    error: tuple[tuple[float, ...], ...]
    members: tuple[tuple[float, float], ...]
    average: tuple[float, float] | None
    average_distance: float | None
    statistics: str


def plane(
    states: Sequence[State],
    evaluate: Evaluate,
    points: int = 15,
    margin: float = 0.3,
    average: State | None = None,
) -> Plane:
    r"""Loss and error on the plane through three members (Garipov et al., NeurIPS 2018).

    Its axes are orthonormal: \(\hat u \propto w_2 - w_1\), and \(\hat v \propto (w_3 - w_1)\) less its part along
    \(\hat u\). The point (x, y) is an affine combination of the three, which also gives its running statistics unless
    `evaluate` computes them anew. Outside the triangle a coefficient is negative; running variances then never fall
    below the smallest member's.

    Args:
        states: Three plain state dicts.
        evaluate: Tells loss and error at given weights, normally a `StateEvaluator`.
        points: Points along each side of the grid; it costs points^2 evaluations.
        margin: How far the grid goes beyond the triangle, as a fraction of its width and height.
        average: A further state dict whose projection is marked.

    Returns:
        The grid, with the members' places in it.

    Raises:
        LatePhaseValueError: Not three states, states of different models, fewer than two points, a negative margin, or
            members that lie on one line.

    Example:
        >>> import torch
        >>> corners = [{"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 1.0])]
        >>> from latephase.evaluation.landscape import LossAndError
        >>> grid = plane(corners, lambda s: LossAndError(float(s["w"].square().sum()), 0.0), points=3, margin=0.0)
        >>> grid.members, grid.loss[0]
        (((0.0, 0.0), (2.0, 0.0), (0.0, 1.0)), (0.0, 1.0, 4.0))
    """
    check_states("plane", states if average is None else [*states, average], least=3)
    if len(states) != 3:
        raise LatePhaseValueError(f"plane: {len(states)} members; a plane goes through three")
    at_least("plane: points", points, 2)
    if not 0 <= margin <= 10:
        raise LatePhaseValueError(f"plane: margin {margin}; use a number from 0 to 10")
    first, second, third = states
    width = distance(first, second)
    reach = distance(first, third)
    along = inner(second, first, third, first) / width if width else 0.0
    height = max(0.0, reach**2 - along**2) ** 0.5
    if not min(width, height) > 1e-6 * max(width, reach):
        raise LatePhaseValueError(
            f"plane: the three members lie on one line (distances {width:.3g} and {reach:.3g} from the first, "
            f"{height:.3g} off the line); choose three that differ"
        )

    def at(x: float, y: float) -> tuple[float, float]:
        shares = (x - along * y / height) / width, y / height
        score = evaluate(combine(states, [1 - sum(shares), *shares]))
        return score.loss, score.error

    left, right = min(0.0, along), max(width, along)
    xs = _grid(left, right, margin, points)
    ys = _grid(0.0, height, margin, points)
    rows = [[at(x, y) for x in xs] for y in ys]
    spot = None if average is None else _project(states, average, width, along, height)
    return Plane(
        xs,
        ys,
        tuple(tuple(loss for loss, _ in row) for row in rows),
        tuple(tuple(error for _, error in row) for row in rows),
        ((0.0, 0.0), (width, 0.0), (along, height)),
        None if spot is None else spot[:2],
        None if spot is None else spot[2],
        statistics_used(evaluate),
    )


def _grid(low: float, high: float, margin: float, points: int) -> tuple[float, ...]:
    beyond = margin * (high - low)
    low, high = low - beyond, high + beyond
    return tuple(low + (high - low) * i / (points - 1) for i in range(points))


def _project(
    states: Sequence[State], average: State, width: float, along: float, height: float
) -> tuple[float, float, float]:
    first, second, third = states
    x = inner(average, first, second, first) / width
    y = (inner(average, first, third, first) - along * x) / height
    off = max(0.0, inner(average, first, average, first) - x**2 - y**2)
    return x, y, off**0.5
