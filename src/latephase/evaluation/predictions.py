"""One pass over a data set: the averaged model, its members and their ensemble."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import classified
from latephase.evaluation.metrics import Metrics
from latephase.stage import evaluating

if TYPE_CHECKING:
    from latephase import LatePhase


@contextmanager
def in_use(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it is used: in eval mode, the averaged model under a late phase, without gradients.

    Args:
        model: Each of its modules is in its old mode afterwards, also those that a user froze.

    Yields:
        The model.

    Example:
        >>> import torch
        >>> model = torch.nn.Dropout()
        >>> with in_use(model) as used:
        ...     used.training
        False
        >>> model.training
        True
    """
    training = model.training
    with evaluating(model), torch.no_grad():
        # The events at which a late phase brings the average in, and the member of the turn back.
        model.eval()
        try:
            yield model
        finally:
            model.train(training)


def evaluate_model(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: AbstractContextManager | None = None
) -> Metrics:
    """Score a classifier in eval mode, which for a model under a late phase is the averaged model.

    Args:
        model: Maps inputs to logits, (N, classes). Each of its modules is in its old mode afterwards.
        batches: Pairs of inputs and class indices; memory does not grow with their number.
        autocast: Context of the forward passes; none by default.

    Returns:
        The scores.

    Raises:
        LatePhaseValueError: No samples, or labels that do not fit the model's classes.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Linear(3, 2)
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> sorted(evaluate_model(model, batches).compute())
        ['accuracy', 'brier', 'ece', 'nll']
    """
    metrics = Metrics()
    with in_use(model):
        for x, y in batches:
            with autocast or nullcontext():
                logits = model(x)
            classified("evaluate_model", logits, y)
            metrics.update(logits.double().log_softmax(dim=-1), y)
    if not metrics.samples:
        raise LatePhaseValueError("evaluate_model: no samples; the data set is empty or its iterator is spent")
    return metrics


def evaluate_members(
    members: LatePhase | Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: AbstractContextManager | None = None,
) -> tuple[Metrics, list[Metrics], list[list[float]]]:
    """Score every member, and the ensemble that averages the members' probabilities.

    Args:
        members: A late phase that has started and has not been collapsed; or for other ensembles a function from inputs
            to the members' logits, (K, N, classes).
        batches: Pairs of inputs and class indices; memory does not grow with their number.
        autocast: Context of the forward passes; none by default.

    Returns:
        The ensemble's scores, each member's scores, and the K x K matrix of how often two members predict
        different classes.

    Raises:
        LatePhaseError: Before `start()` or after `collapse()`.
        LatePhaseValueError: No samples, or labels that do not fit the model's classes.

    Example:
        >>> import torch, latephase
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> late = latephase.LatePhase(model, members=3)
        >>> late.start()
        >>> batches = [(torch.randn(8, 3), torch.randint(2, (8,)))]
        >>> ensemble, each, disagreement = evaluate_members(late, batches)
        >>> len(each), disagreement[0][1]  # the members are still equal
        (3, 0.0)
    """
    predict = members if callable(members) else members.predict
    ensemble = Metrics()
    each: list[Metrics] = []
    differ = torch.zeros((), dtype=torch.float64)
    for x, y in batches:
        with autocast or nullcontext():
            logits = predict(x)
        classified("evaluate_members", logits, y, members=True)
        log_p = logits.double().log_softmax(dim=-1)
        ensemble.update(log_p.logsumexp(dim=0) - math.log(len(log_p)), y)
        each = each or [Metrics() for _ in log_p]
        for metrics, member in zip(each, log_p, strict=True):
            metrics.update(member, y)
        classes = log_p.argmax(dim=-1)
        differ = differ + (classes[:, None] != classes[None]).sum(dim=-1).cpu()
    if not ensemble.samples:
        raise LatePhaseValueError("evaluate_members: no samples; the data set is empty or its iterator is spent")
    return ensemble, each, (differ / ensemble.samples).tolist()
