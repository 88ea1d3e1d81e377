"""Monte Carlo of the literal algorithms, which knows nothing of the solutions it is there to check."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latephase.nqp import _checks
from latephase.nqp.averaging import EMA, SWA
from latephase.nqp.ensemble import Ensemble
from latephase.nqp.late_phase import LatePhase
from latephase.nqp.lookahead import Lookahead
from latephase.nqp.multiplicative import MultiplicativeLatePhase
from latephase.nqp.result import Loss
from latephase.nqp.sgd import SGD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from latephase.nqp.problem import Problem
    from latephase.nqp.schedule import LinearDecay

    Method = SGD | LatePhase | Ensemble | SWA | EMA | Lookahead | MultiplicativeLatePhase
    Array = NDArray[np.float64]


class Snapshot(NamedTuple):
    """Errors w - w* of every replica at one count of minibatches.

    Attributes:
        average: Of the averaged model, shape (replicas, n).
        members: Of each member, K arrays of shape (replicas, n).
        phi: Mean multiplicative factor, shape (replicas,); None where there is none.
    """

    average: Array
    members: list[Array]
    phi: Array | None = None


def simulate(method: Method, problem: Problem, minibatches: int | Sequence[int], replicas: int, seed: int) -> Loss:
    """Run the literal algorithm in many independent replicas.

    Every minibatch draws its own noise, members take their turns in a loop over k with the base weights
    fixed, and every optimizer keeps the buffers that torch's would keep: no decomposition and no formula is
    used.

    Args:
        method: Any method of this module.
        problem: The noisy quadratic problem.
        minibatches: One count, or increasing counts, as ``expected_loss`` takes them.
        replicas: Number of independent runs, >= 1.
        seed: Seed of NumPy's generator; equal seeds give equal results.

    Returns:
        The loss of every replica: arrays (replicas,) for one count, (replicas, counts) for several. Runs
        that diverge end in inf or NaN.

    Raises:
        ValueError: A count does not suit the method, or ``replicas`` < 1.

    Example:
        >>> from latephase import nqp
        >>> late = nqp.LatePhase(2, base_lr=0.1, late_lr=0.1, base_gradient_scale=0.5)
        >>> problem = nqp.Problem([1.0, 0.1])
        >>> loss = nqp.simulate(late, problem, [20, 200], replicas=400, seed=0)
        >>> loss.average.shape
        (400, 2)
        >>> relative = abs(loss.average.mean(axis=0) / late.expected_loss(problem, [20, 200]).average - 1)
        >>> bool(relative.max() < 0.1)
        True
    """
    _, single = _checks.counts("minibatches", minibatches)
    average, members = [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for snapshot in simulate_weights(method, problem, minibatches, replicas, seed):
            average.append(_loss(problem, snapshot.average))
            members.append(np.mean([_loss(problem, member) for member in snapshot.members], axis=0))
    if single:
        return Loss(average[0], members[0])
    return Loss(np.stack(average, axis=1), np.stack(members, axis=1))


def simulate_weights(
    method: Method, problem: Problem, minibatches: int | Sequence[int], replicas: int, seed: int
) -> Iterator[Snapshot]:
    """Run as ``simulate`` does, and yield the weights at every count instead of their losses.

    Args:
        method: Any method of this module.
        problem: The noisy quadratic problem.
        minibatches: One count, or increasing counts.
        replicas: Number of independent runs, >= 1.
        seed: Seed of NumPy's generator.

    Returns:
        An iterator over the counts: the errors of all replicas, and the multiplicative factor where there is
        one.

    Raises:
        ValueError: ``replicas`` < 1, or (when the iteration begins) a count does not suit the method.

    Example:
        >>> from latephase import nqp
        >>> late = nqp.MultiplicativeLatePhase(5, base_lr=0.05, late_lr=0.05, base_gradient_scale=0.2)
        >>> problem = nqp.Problem([1.0], initial_mean=0.0)
        >>> (end,) = nqp.simulate_weights(late, problem, 1000, replicas=200, seed=0)
        >>> end.phi.shape
        (200,)
    """
    counts, _ = _checks.counts("minibatches", minibatches)
    draw = _Minibatches(problem, _checks.whole_number("replicas", replicas, 1), seed)
    return _run(method, draw, counts)


class _Minibatches:
    """Fresh minibatches: each call of ``gradient`` draws new noise."""

    def __init__(self, problem: Problem, replicas: int, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.shape = (replicas, problem.directions)
        self._noise_scale = problem.curvature * np.sqrt(problem.noise)
        self._noise = np.empty(self.shape)

    def initial(self) -> Array:
        """Draw the initial errors w - w*."""
        spread = np.sqrt(self.problem.initial_variance)
        return self.problem.initial_mean + spread * self.rng.standard_normal(self.shape)

    def gradient(self, error: Array) -> Array:
        """Return h (error + noise) for a new minibatch."""
        self.rng.standard_normal(out=self._noise)
        gradient = self.problem.curvature * error
        self._noise *= self._noise_scale
        gradient += self._noise
        return gradient


class _Optimizer:
    """torch.optim.SGD of one tensor: learning rate, momentum, Nesterov, and a schedule's factor."""

    def __init__(self, lr: float, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.buffer: Array | None = None

    def step(self, weight: Array, gradient: Array, factor: float = 1.0) -> None:
        """Move ``weight`` in place."""
        if self.momentum:
            self.buffer = gradient if self.buffer is None else self.momentum * self.buffer + gradient
            gradient = gradient + self.momentum * self.buffer if self.nesterov else self.buffer
        weight -= (factor * self.lr) * gradient


def _loss(problem: Problem, error: Array) -> Array:
    return 0.5 * (error * error) @ problem.curvature


def _factor(schedule: LinearDecay | None, minibatch: int) -> float:
    return 1.0 if schedule is None else schedule.factor(minibatch)


@singledispatch
def _run(method: Method, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    raise ValueError(f"method = {method!r} cannot be simulated; need a method of latephase.nqp")


@_run.register(SGD)
def _run_sgd(method: SGD, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    _checks.whole_rounds(counts, method.batch_multiplier)
    w = draw.initial()
    optimizer = _Optimizer(method.lr, method.momentum, method.nesterov)
    if counts[0] == 0:
        yield Snapshot(w.copy(), [w.copy()])
    for minibatch in range(method.batch_multiplier, counts[-1] + 1, method.batch_multiplier):
        gradient = draw.gradient(w)
        for _ in range(method.batch_multiplier - 1):
            gradient += draw.gradient(w)
        optimizer.step(w, gradient / method.batch_multiplier, _factor(method.schedule, minibatch - 1))
        if minibatch in counts:
            yield Snapshot(w.copy(), [w.copy()])


@_run.register(LatePhase)
def _run_late_phase(method: LatePhase, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    _checks.whole_rounds(counts, method.members, method.start)
    w = draw.initial()
    plain = _Optimizer(method.plain_lr, method.momentum, method.nesterov)
    for minibatch in range(method.start):
        if minibatch in counts:
            yield Snapshot(w.copy(), [w.copy()])
        plain.step(w, draw.gradient(w), _factor(method.schedule, minibatch))
    # The start: theta takes over where w stands, every phi_k is noise.
    theta, scale = w, np.sqrt(method.perturbation_variance)
    phis = [scale * draw.rng.standard_normal(draw.shape) for _ in range(method.members)]
    of_theta = _Optimizer(method.base_lr, method.momentum, method.nesterov)
    of_phi = [_Optimizer(method.late_lr, method.momentum, method.nesterov) for _ in phis]
    if method.optimizer_state == "copy":
        for optimizer in (of_theta, *of_phi):
            optimizer.buffer = plain.buffer
    minibatch = method.start
    while True:
        if minibatch in counts:
            yield Snapshot(theta + np.mean(phis, axis=0), [theta + phi for phi in phis])
        if minibatch >= counts[-1]:
            return
        factor = _factor(method.schedule, minibatch + method.members - 1)
        total = np.zeros(draw.shape)
        for phi, optimizer in zip(phis, of_phi, strict=True):
            gradient = draw.gradient(theta + phi)
            optimizer.step(phi, gradient, factor)
            total += gradient
            minibatch += 1
        of_theta.step(theta, method.base_gradient_scale * total, factor)


@_run.register(MultiplicativeLatePhase)
def _run_multiplicative(method: MultiplicativeLatePhase, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    _checks.whole_rounds(counts, method.members, method.start)
    optimum = method.optimum_of(draw.problem)
    error = draw.initial()
    replicas = draw.shape[0]
    for minibatch in range(method.start):
        if minibatch in counts:
            yield Snapshot(error.copy(), [error.copy()], np.full(replicas, method.initial_phi))
        error -= method.plain_lr * draw.gradient(error)
    theta = (optimum + error) / method.initial_phi
    noise = draw.rng.standard_normal((replicas, method.members))
    phis = method.initial_phi + np.sqrt(method.perturbation_variance) * noise
    minibatch = method.start
    while True:
        if minibatch in counts:
            mean = phis.mean(axis=1)
            members = [theta * phis[:, k, None] - optimum for k in range(method.members)]
            yield Snapshot(theta * mean[:, None] - optimum, members, mean)
        if minibatch >= counts[-1]:
            return
        total = np.zeros(draw.shape)
        for k in range(method.members):
            phi = phis[:, k, None]
            gradient = draw.gradient(theta * phi - optimum)
            total += phi * gradient
            phis[:, k] -= method.late_lr * (theta * gradient).sum(axis=1)
            minibatch += 1
        theta -= method.base_lr * method.base_gradient_scale * total


@_run.register(Ensemble)
def _run_ensemble(method: Ensemble, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    rounds = _checks.whole_rounds(counts, method.members)
    initial = draw.initial()
    runs = [initial.copy() for _ in range(method.members)]
    for step in range(rounds[-1] + 1):
        if step in rounds:
            yield Snapshot(np.mean(runs, axis=0), [run.copy() for run in runs])
        for run in runs:
            run -= method.lr * draw.gradient(run)


@_run.register(SWA)
def _run_swa(method: SWA, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    w = draw.initial()
    # For each count, the iterates w_first .. w_count are averaged as they come.
    firsts = method.first_iterates(counts)
    sums = [np.zeros(draw.shape) for _ in counts]
    for minibatch in range(counts[-1] + 1):
        for total, first, count in zip(sums, firsts, counts, strict=True):
            if first <= minibatch <= count:
                total += w
            if minibatch == count:
                mean = total / (count - first + 1)
                yield Snapshot(mean, [mean])
        w -= method.lr * draw.gradient(w)


@_run.register(EMA)
def _run_ema(method: EMA, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    w = draw.initial()
    average = w.copy()
    for minibatch in range(counts[-1] + 1):
        if minibatch in counts:
            yield Snapshot(average.copy(), [average.copy()])
        w -= method.lr * draw.gradient(w)
        average = method.decay * average + (1.0 - method.decay) * w


@_run.register(Lookahead)
def _run_lookahead(method: Lookahead, draw: _Minibatches, counts: list[int]) -> Iterator[Snapshot]:
    _checks.whole_rounds(counts, method.k)
    slow = draw.initial()
    fast = slow.copy()
    for minibatch in range(counts[-1] + 1):
        if minibatch and minibatch % method.k == 0:
            slow += method.alpha * (fast - slow)
            fast = slow.copy()
        if minibatch in counts:
            yield Snapshot(slow.copy(), [slow.copy()])
        fast -= method.lr * draw.gradient(fast)
