"""The multiplicative case along its path: noise-free motion with linearised noise around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.result import Loss
from latephase.nqp.sgd import SGD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from latephase.nqp.multiplicative import MultiplicativeLatePhase
    from latephase.nqp.problem import Problem


class Trajectory(NamedTuple):
    r"""What the linear-noise approximation says along the path.

    Attributes:
        loss: Expected losses of the averaged model and of the mean member.
        phi: Mean factor :math:`\bar\varphi`: a float, or one per count.
    """

    loss: Loss
    phi: float | NDArray[np.float64]


class _State(NamedTuple):
    """Path (theta, phi), covariance of the deviations from it, and variance of the members' differences."""

    theta: NDArray[np.float64]
    phi: np.float64
    covariance: NDArray[np.float64]
    difference: np.float64


def propagate(method: MultiplicativeLatePhase, problem: Problem, minibatches: int | Sequence[int]) -> Trajectory:
    r"""Propagate the path and the (n+1) x (n+1) covariance of the deviations (a, b) of (theta, mean phi).

    With :math:`e = \theta\varphi - w^*` and the covariance P, the loss of the averaged model is

    .. math:: \tfrac12 \sum_i h_i \left[ e^2 + 2 e P_{ab} + \varphi^2 P_{aa} + 2\theta\varphi P_{ab}
        + \theta^2 P_{bb} \right]_i,

    and a member adds :math:`\tfrac12 (1 - 1/K)\, \theta^T H \theta\, D` with the variance D of the
    differences.

    Args:
        method: Multiplicative late-phase training.
        problem: The noisy quadratic problem.
        minibatches: One count, or increasing counts: any up to ``method.start``, then whole rounds.

    Returns:
        The losses and the mean factor per count.

    Raises:
        ValueError: A count is negative, not increasing, or not a whole number of rounds after the start.
    """
    counts, single = _checks.counts("minibatches", minibatches)
    rounds = _checks.whole_rounds(counts, method.members, method.start)
    early = [count for count in counts if count < method.start]
    *plain, at_start = SGD(method.plain_lr).moments(problem, [*early, method.start])
    average = [problem.loss(m.mean[0], m.covariance[0, 0]) for m in plain]
    members, phi = list(average), [method.initial_phi] * len(average)
    born = _born(method, problem, at_start.mean[0], at_start.covariance[0, 0])
    for state in _evolve(method, problem, born, rounds[len(early) :]):
        average.append(_averaged_loss(method, problem, state))
        members.append(average[-1] + _members_excess(method, problem, state))
        phi.append(float(state.phi))
    if single:
        return Trajectory(Loss(average[0], members[0]), phi[0])
    return Trajectory(Loss(np.array(average), np.array(members)), np.array(phi))


def _born(
    method: MultiplicativeLatePhase,
    problem: Problem,
    mean: NDArray[np.float64],
    variance: NDArray[np.float64],
) -> _State:
    """Return the state when the members come to life where plain SGD has left w."""
    phi, perturbation = np.float64(method.initial_phi), np.float64(method.perturbation_variance)
    scatter = np.append(variance / phi**2, perturbation / method.members)
    return _State((method.optimum_of(problem) + mean) / phi, phi, np.diag(scatter), perturbation)


def _evolve(
    method: MultiplicativeLatePhase, problem: Problem, state: _State, rounds: Sequence[int]
) -> Iterator[_State]:
    optimum, now = method.optimum_of(problem), 0
    for count in rounds:
        for _ in range(count - now):
            state = _round(method, problem, optimum, state)
        now = count
        yield state


@np.errstate(over="ignore", invalid="ignore")  # a diverging path ends in an infinite loss, not in a warning
def _round(method: MultiplicativeLatePhase, problem: Problem, optimum: NDArray[np.float64], state: _State) -> _State:
    theta, phi, covariance, difference = state
    h, base, late = problem.curvature, method.summed_base_lr, method.late_lr
    error = theta * phi - optimum
    # Jacobian [[diag(stay), across], [back, keep]] of one noise-free round.
    stay = 1.0 - base * phi**2 * h
    across, back = -base * h * (error + phi * theta), -late * h * (error + phi * theta)
    keep = 1.0 - late * np.sum(theta**2 * h)
    half = _apply(stay, across, back, keep, covariance)
    covariance = _apply(stay, across, back, keep, half.T)
    # What a mean noise of unit variance does to every theta_i and to phi.
    scale = h * np.sqrt(problem.noise / method.members)
    to_theta, to_phi = base * phi * scale, late * theta * scale
    covariance[:-1, :-1] += np.diag(to_theta**2)
    covariance[:-1, -1] += to_theta * to_phi
    covariance[-1, :-1] += to_theta * to_phi
    covariance[-1, -1] += np.sum(to_phi**2)
    difference = keep**2 * difference + method.members * np.sum(to_phi**2)
    moved = phi - late * np.sum(theta * h * error)
    return _State(theta - base * phi * h * error, moved, covariance, difference)


def _apply(
    stay: NDArray[np.float64],
    across: NDArray[np.float64],
    back: NDArray[np.float64],
    keep: np.float64,
    matrix: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Multiply the Jacobian by a matrix in O(n^2), using that its theta block is diagonal."""
    top = stay[:, None] * matrix[:-1] + across[:, None] * matrix[-1]
    return np.vstack([top, back @ matrix[:-1] + keep * matrix[-1]])


@np.errstate(over="ignore", invalid="ignore")
def _averaged_loss(method: MultiplicativeLatePhase, problem: Problem, state: _State) -> float:
    theta, phi, covariance, _ = state
    error = theta * phi - method.optimum_of(problem)
    own, joint, of_phi = np.diag(covariance)[:-1], covariance[:-1, -1], covariance[-1, -1]
    variance = 2.0 * (error + theta * phi) * joint + phi**2 * own + theta**2 * of_phi
    return problem.loss(error, variance)


@np.errstate(over="ignore", invalid="ignore")
def _members_excess(method: MultiplicativeLatePhase, problem: Problem, state: _State) -> float:
    spread = problem.loss(np.zeros(problem.directions), state.theta**2 * state.difference)
    return (1.0 - 1.0 / method.members) * spread
