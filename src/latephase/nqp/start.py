"""When to start: the minibatch T0 at which the members should come to life."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.descent import Descent, log_contraction
from latephase.nqp.late_phase import LatePhase
from latephase.nqp.moments import Moments
from latephase.nqp.problem import Problem
from latephase.nqp.schedule import Clock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latephase.nqp.moments import LinearMap
    from latephase.nqp.result import Loss

# Directions are treated in blocks so that the plain run's moments at all starts fit in about 64 MiB.
_BLOCK_NUMBERS = 8_000_000


def best_start(method: LatePhase, problem: Problem, minibatches: int) -> tuple[int, Loss]:
    r"""Find the start with the lowest expected loss of the averaged model after N minibatches.

    Every start that leaves whole rounds, T0 in {N - K j}, is evaluated exactly. The loss is linear in the
    second moments at T0, so one pass forwards over plain SGD and one backwards over the rounds give all of
    them:

    .. math:: L(T_0) = \tfrac12 \sum_i h_i \left[ (c_j^T m_{T_0})^2 + c_j^T P_{T_0} c_j + R_j \right], \qquad
        c_{j+1}^T = c_j^T A, \quad R_{j+1} = R_j + c_j^T Q c_j, \quad j = (N - T_0)/K,

    with the round's transition A and noise covariance Q.

    Args:
        method: Late-phase training; its own ``start`` is ignored.
        problem: The noisy quadratic problem.
        minibatches: N >= 0, the whole budget.

    Returns:
        The best start T0 in minibatches (the earliest if several are equal), and the losses after N
        minibatches.

    Raises:
        ValueError: ``minibatches`` is negative or not an integer, or ``method`` is not a ``LatePhase``.

    Example:
        >>> from latephase import nqp
        >>> problem = nqp.Problem(nqp.power_law(1000))
        >>> late = nqp.LatePhase(5, base_lr=0.25, late_lr=0.25, base_gradient_scale=1 / 5)
        >>> start, loss = nqp.best_start(late, problem, 2000)
        >>> start, round(loss.average, 5), round(late.expected_loss(problem, 2000).average, 5)
        (970, 0.38143, 0.53335)
    """
    if not isinstance(method, LatePhase):
        raise ValueError(f"method = {method!r} has no start; need a LatePhase")
    budget = _checks.whole_number("minibatches", minibatches, 0)
    candidates = list(range(budget % method.members, budget + 1, method.members))
    losses = np.zeros(len(candidates))
    block = max(1, _BLOCK_NUMBERS // (6 * len(candidates)))
    for first in range(0, problem.directions, block):
        losses += _losses_by_start(method, _part(problem, slice(first, first + block)), candidates)
    best = candidates[int(np.argmin(losses))]
    return best, replace(method, start=best).expected_loss(problem, budget)


def _losses_by_start(method: LatePhase, problem: Problem, candidates: list[int]) -> NDArray[np.float64]:
    """Return the averaged model's loss at the last candidate's minibatch, for every candidate start."""
    plain = method.plain_descent(problem)
    initial = Moments.of(problem.initial_mean, problem.initial_variance, plain.size)
    at_start = [method.born(m) for m in plain.evolve(initial, Clock(0, 1, method.schedule), candidates)]
    mean_mode, _ = method.modes(problem)
    clock = Clock(candidates[0], method.members, method.schedule)
    reach = np.zeros_like(initial.mean)
    reach[0] = 1.0
    gathered = np.zeros(problem.directions)
    losses = np.empty(len(candidates))
    one_round: tuple[float, LinearMap] | None = None
    for index in reversed(range(len(candidates))):
        mean, covariance = at_start[index]
        variance = np.einsum("in,ijn,jn->n", reach, covariance, reach)
        losses[index] = problem.loss((reach * mean).sum(axis=0), variance + gathered)
        if index:
            factor = clock.factor(index - 1)
            if one_round is None or one_round[0] != factor:
                one_round = (factor, mean_mode.step(factor))
            transition, noise = one_round[1]
            gathered = gathered + np.einsum("in,ijn,jn->n", reach, noise, reach)
            reach = np.einsum("in,ijn->jn", reach, transition)
    return losses


def _part(problem: Problem, directions: slice) -> Problem:
    """Return the problem restricted to some of its directions."""
    return Problem(
        problem.curvature[directions],
        problem.noise_variance[directions],
        problem.batch_size,
        problem.initial_mean[directions],
        problem.initial_variance[directions],
    )


def optimal_start(method: LatePhase, problem: Problem, minibatches: int | None = None) -> NDArray[np.float64]:
    r"""Closed form of the best start of each direction on its own, as a real number of minibatches.

    For equal learning rates before and after the start, :math:`\eta_\mathrm{eff} = \eta_\mathrm{sgd}`, with
    :math:`a = 1 - \eta h`, SGD's noise floor :math:`v_\infty = \eta h s / (B(2 - \eta h))` and the initial
    moments :math:`m_0, v_0`:

    .. math:: T_0^* = \frac{1}{-2 \ln|a|} \ln
        \frac{K (m_0^2 + v_0 - v_\infty)}{v_\infty + \sigma_0^2 / (K - 1)}

    clipped to [0, N]; it does not depend on N. Without perturbation it says: start when SGD's loss has
    fallen to (1 + 1/K) times its noise floor. It follows from setting to zero the derivative of the expected
    loss at N in T0. Directions of different curvature have different optima; ``best_start`` weighs them.

    Args:
        method: Late-phase training with K >= 2 and ``sgd_lr`` equal to ``effective_lr``, without momentum or
            schedule; its own ``start`` is ignored.
        problem: The noisy quadratic problem.
        minibatches: The budget N at which to clip; None does not clip above.

    Returns:
        The optimum of every direction, shape (n,): inf where there is no noise, so that SGD is best to the
        end, and NaN where the direction is flat, so that nothing depends on the start.

    Raises:
        ValueError: The rates differ, K < 2, the method has momentum or a schedule, or SGD is unstable.

    Example:
        >>> from latephase import nqp
        >>> late = nqp.LatePhase(10, base_lr=0.1, late_lr=0.1, base_gradient_scale=1 / 10)
        >>> nqp.optimal_start(late, nqp.Problem([1.0], initial_mean=10.0)).round(6)
        array([20.399129])
    """
    _refuse_unsolved(method)
    limit = np.inf if minibatches is None else _checks.whole_number("minibatches", minibatches, 0)
    lr, largest = method.plain_lr, method.max_lr(problem)
    if not 0.0 < lr < largest:
        raise ValueError(f"effective_lr = sgd_lr = {lr:g} has no noise floor; need 0 < effective_lr < {largest:g}")
    floor = Descent(problem.curvature, problem.noise, lr, method.plain_descent(problem).momentum)
    v_inf = floor.stationary_variance()
    bias = problem.initial_mean**2 + problem.initial_variance - v_inf
    target = v_inf + method.perturbation_variance / (method.members - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bias > 0.0, method.members * bias / target, 0.0)
        start = np.log(ratio) / (-2.0 * log_contraction(lr * problem.curvature))
    start = np.where(bias > 0.0, np.clip(start, 0.0, limit), 0.0)
    return np.where(problem.curvature > 0.0, start, np.nan)


def _refuse_unsolved(method: LatePhase) -> None:
    """Raise where the closed form does not hold."""
    if not isinstance(method, LatePhase):
        raise ValueError(f"method = {method!r} has no start; need a LatePhase")
    if method.members < 2:
        raise ValueError(f"members = {method.members} has no best start; need members >= 2")
    if method.momentum or method.schedule is not None:
        raise ValueError(
            f"momentum = {method.momentum:g}, schedule = {method.schedule} has no closed form; need"
            " momentum = 0 and schedule = None, or use best_start"
        )
    if not np.isclose(method.plain_lr, method.effective_lr, rtol=1e-12, atol=0.0):
        raise ValueError(
            f"sgd_lr = {method.plain_lr:g} differs from effective_lr = {method.effective_lr:g}; the"
            " closed form needs them equal"
        )
