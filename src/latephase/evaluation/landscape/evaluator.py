"""Loss and error of a model at any weights: the function that every view of the landscape calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latephase
from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import again, classified, plain
from latephase.evaluation._result import Result
from latephase.evaluation.landscape.states import State
from latephase.stage import evaluating


@dataclass(frozen=True)
class LossAndError(Result):
    """What a model is worth at one point.

    Attributes:
        loss: Mean loss over the samples.
        error: Fraction of samples of which the most likely class is wrong.
    """

    loss: float
    error: float


Evaluate = Callable[[State], LossAndError]
"""Anything that tells loss and error at given weights; `StateEvaluator` is one."""


def statistics_used(evaluate: Evaluate) -> str:
    """How an evaluation handles BatchNorm's running statistics, for the result that it goes into.

    Args:
        evaluate: A `StateEvaluator`, or another function.

    Returns:
        "recomputed", "stored" or "none"; "not said" for a function that has no attribute `statistics`.
    """
    return str(getattr(evaluate, "statistics", "not said"))


class StateEvaluator:
    """Evaluates one model at other weights, and leaves it as it was.

    What BatchNorm does at weights between those that were trained is a choice that changes the picture:

    - "recompute" (`statistics_batches` given): at every point the running statistics are computed anew from these
      batches, by `latephase.recompute_statistics`. A barrier is then one of the weights, not of stale statistics. It
      costs one more pass at every point, and the batches must be the same at every point;
    - "stored" (none given): the state dict's own statistics are used; on lines and planes they are interpolated as
      the weights are.

    Dropout is off either way.

    Args:
        model: A plain model that the state dicts load into. It is in eval mode during evaluation only, and its values
            and modes are the old ones afterwards.
        batches: Pairs of inputs and class indices, of which there may be several passes (a list or a DataLoader).
        statistics_batches: Batches for BatchNorm's statistics: inputs or tuples that begin with them, normally part of
            the training data, augmented as in training but fixed.
        loss: Maps logits (N, classes) and labels (N,) to the batch's mean loss.

    Raises:
        LatePhaseError: The model's members are a late phase's; pass a plain copy.
        LatePhaseValueError: Batches that can be iterated over only once.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> evaluate = StateEvaluator(model, data)
        >>> evaluate({"weight": 50 * torch.eye(2), "bias": torch.zeros(2)})
        LossAndError(loss=0.0, error=0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        statistics_batches: Iterable[Any] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.model = plain("StateEvaluator", model)
        self.batches = again("StateEvaluator: batches", batches)
        self.statistics_batches: Iterable[Any] | None = None
        if statistics_batches is not None:
            self.statistics_batches = again("StateEvaluator: statistics_batches", statistics_batches)
        self.loss = loss
        normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())
        mode = "stored" if statistics_batches is None else "recomputed"
        self.statistics = mode if normed else "none"
        """How BatchNorm was handled, "recomputed", "stored", or "none" where the model has no such statistics."""

    def __call__(self, state: State) -> LossAndError:
        """Loss and error at these weights.

        Args:
            state: A state dict of the model.

        Returns:
            Both, over all samples.

        Raises:
            LatePhaseValueError: A state dict that does not fit, no samples, or labels that do not fit the classes.
        """
        loss = wrong = samples = 0.0
        with self._at(state):
            for x, y in self.batches:
                logits = self._logits(x, y)
                loss += float(self.loss(logits, y)) * len(y)
                wrong += float((logits.argmax(dim=-1) != y).sum())
                samples += len(y)
        if not samples:
            raise LatePhaseValueError("StateEvaluator: no samples; the batches are empty")
        return LossAndError(loss / samples, wrong / samples)

    def classes(self, state: State) -> Tensor:
        """The predicted classes at these weights.

        Args:
            state: A state dict of the model.

        Returns:
            int64 on the CPU, (samples,), in the order of the batches.

        Raises:
            LatePhaseValueError: As for the call.
        """
        with self._at(state):
            parts = [self._logits(x, y).argmax(dim=-1).cpu() for x, y in self.batches]
        if not parts:
            raise LatePhaseValueError("StateEvaluator: no samples; the batches are empty")
        return torch.cat(parts)

    @contextmanager
    def _at(self, state: State) -> Iterator[None]:
        with holding(self.model, state), evaluating(self.model), torch.no_grad():
            if self.statistics == "recomputed":
                latephase.recompute_statistics(self.model, self.statistics_batches or ())
            yield

    def _logits(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.model(x)
        classified("StateEvaluator", logits, y)
        return logits


@contextmanager
def holding(model: nn.Module, state: State) -> Iterator[None]:
    """Context in which a model holds other values; the old ones are back afterwards, also after an error.

    Args:
        model: A plain model.
        state: Its state dict in the context.

    Yields:
        Nothing.

    Raises:
        LatePhaseValueError: A state dict with other keys or shapes; the model is as it was.
    """
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        try:
            model.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise LatePhaseValueError(f"the state dict does not fit {type(model).__name__}: {reason}") from error
        yield
    finally:
        model.load_state_dict(old)
