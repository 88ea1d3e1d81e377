"""A whole round from one batch: in K turns, in one pass, or in whichever is the faster here."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from .arguments import choice
from .errors import LatePhaseError, LatePhaseValueError
from .parallel import split
from .phase import LatePhase

MODES = ("auto", "loop", "parallel")


class Round:
    """A training step of all members: K minibatches, one step of the base weights.

    Both ways of a round lead to the same weights, up to rounding. On a CPU K turns are the faster, since a small batch
    stays in the caches; on a GPU one pass is, as long as the model is small. With `mode="auto"` the first rounds are
    run in turn as the one and as the other, and timed, training all the while; then the faster is kept. Where one pass
    cannot be had (a module that `torch.vmap` cannot run, too little memory) the turns are.

    Args:
        late: a phase that has started.
        optimizers: the optimizer that it drives, or several, in the order of their steps.
        loss: called as `loss(outputs, targets)`; a scalar, the mean over the samples that it is given.
        mode: "auto", "loop" or "parallel".
        trials: timed rounds of each way; one of each goes before them, in which kernels are chosen and compiled.
        model: what a turn calls, where that is a wrapper (compiled, DDP) of the phase's model.
        clock: seconds; for tests.

    Raises:
        LatePhaseValueError: no such mode, fewer than one trial, or "auto" with several processes, which could decide
            differently.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> late = latephase.LatePhase(model, members=2)
        >>> optimizer = late.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> late.start()
        >>> step = latephase.Round(late, optimizer, torch.nn.functional.cross_entropy, mode="loop")
        >>> loss = step(torch.randn(16, 3), torch.randint(2, (16,)))  # two minibatches of 8
        >>> late.rounds
        1
    """

    def __init__(
        self,
        late: LatePhase,
        optimizers: Optimizer | Sequence[Optimizer],
        loss: Callable[[Any, Any], Tensor],
        mode: str = "auto",
        *,
        trials: int = 3,
        model: nn.Module | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if trials < 1:
            raise LatePhaseValueError(f"trials: {trials}; use at least 1")
        self.mode: str | None = choice("mode", mode, MODES)
        """"loop" or "parallel"; None while both are being timed."""
        if mode == "auto":
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                raise LatePhaseValueError("mode: 'auto' could choose differently on every rank; use 'loop'")
            self.mode = None
        self._late, self._loss, self._clock, self._trials = late, loss, clock, trials
        self._model = late.model if model is None else model
        self._optimizers = list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]
        self.times: dict[str, list[float]] = {"loop": [], "parallel": []}
        """Seconds of the timed rounds, in order; the first of each way counts for nothing."""

    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        """Train on K minibatches.

        Args:
            inputs: the model's input, a tuple of its arguments, or a dict of keyword arguments; tensors (K*B, ...), of
                which k*B to (k+1)*B are member k's minibatch.
            targets: what the loss takes, tensors (K*B, ...) in any tree.

        Returns:
            The mean loss of the K minibatches, each before its step; detached.

        Raises:
            LatePhaseError: before `start()`, in the middle of a round, in eval mode, inside `late.member(k)` or
                `late.average()`, or with members over ranks; nothing has been trained.
            LatePhaseValueError: a batch that cannot be split into K equal minibatches.
        """
        self._late._life.check_round("Round")
        if self.mode is not None:
            return self._run(self.mode, inputs, targets)
        order = ("parallel", "loop")
        way = min(order, key=lambda each: len(self.times[each]))
        begun = self._now()
        try:
            loss = self._tried(inputs, targets) if way == "parallel" else self._run(way, inputs, targets)
        except (LatePhaseError, torch.OutOfMemoryError) as error:
            if way == "loop" or isinstance(error, LatePhaseValueError):
                raise
            self.mode = "loop"
            return self._run("loop", inputs, targets)
        self.times[way].append(self._now() - begun)
        if all(len(times) > self._trials for times in self.times.values()):
            middle = {each: statistics.median(times[1:]) for each, times in self.times.items()}
            self.mode = min(order, key=lambda each: middle[each])
        return loss

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()

    def _tried(self, inputs: Any, targets: Any) -> Tensor:
        """A round in one pass, which leaves nothing behind where it fails."""
        if self.times["parallel"]:
            return self._run("parallel", inputs, targets)
        before = self._late.state_dict()
        try:
            return self._run("parallel", inputs, targets)
        except (LatePhaseError, torch.OutOfMemoryError):
            self._late._life.restore(before)
            self._each("zero_grad")
            raise

    def _run(self, way: str, inputs: Any, targets: Any) -> Tensor:
        late, losses = self._late, []
        together = way == "parallel"
        shares = split((inputs, targets), late.members)
        for x, y in [(inputs, targets)] if together else [_share(shares, k) for k in range(late.members)]:
            self._each("zero_grad")
            args, kwargs = _arguments(x)
            loss = self._loss((late.parallel if together else self._model)(*args, **kwargs), y)
            loss.backward()
            self._each("step")
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _each(self, call: str) -> None:
        for optimizer in self._optimizers:
            getattr(optimizer, call)()


def _share(tree: Any, k: int) -> Any:
    return tree_map(lambda leaf: leaf[k] if isinstance(leaf, Tensor) else leaf, tree)


def _arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(x, dict):
        return (), x
    return (x if isinstance(x, tuple) else (x,)), {}
