"""One pass over a data set: the averaged model, its members and their ensemble."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latephase.evaluation.metrics import Metrics

if TYPE_CHECKING:
    from latephase import LatePhase


def evaluate_model(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: AbstractContextManager | None = None
) -> Metrics:
    """Score a classifier in eval mode, which for a model under a late phase is the averaged model.

    Args:
        model: Maps inputs to logits, (N, classes). It is in its old mode afterwards.
        batches: Pairs of inputs and class indices.
        autocast: Context of the forward passes; none by default.

    Returns:
        The scores.
    """
    metrics = Metrics()
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches:
                with autocast or nullcontext():
                    logits = model(x)
                metrics.update(logits.double().log_softmax(dim=-1), y)
    finally:
        model.train(training)
    return metrics


def evaluate_members(
    late: LatePhase,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: AbstractContextManager | None = None,
) -> tuple[Metrics, list[Metrics], list[list[float]]]:
    """Score every member, and the ensemble that averages the members' probabilities.

    Args:
        late: A late phase that has started and has not been collapsed.
        batches: Pairs of inputs and class indices.
        autocast: Context of the forward passes; none by default.

    Returns:
        The ensemble's scores, each member's scores, and the K x K matrix of how often two members predict
        different classes.
    """
    ensemble = Metrics()
    members = [Metrics() for _ in range(late.members)]
    differ = torch.zeros(late.members, late.members, dtype=torch.float64)
    for x, y in batches:
        with autocast or nullcontext():
            logits = late.predict(x)
        log_p = logits.double().log_softmax(dim=-1)
        ensemble.update(log_p.logsumexp(dim=0) - math.log(late.members), y)
        for metrics, member in zip(members, log_p, strict=True):
            metrics.update(member, y)
        classes = log_p.argmax(dim=-1)
        differ += (classes[:, None] != classes[None]).sum(dim=-1).cpu()
    return ensemble, members, (differ / ensemble.samples).tolist()
