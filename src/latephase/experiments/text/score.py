"""Bits per character of held-out text, with the state carried through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from latephase.evaluation import Metrics
from latephase.experiments.text.held_out import UNSCORED

#: Maps tokens, (N, length), and a state (None at the beginning) to log-probabilities, (N, length, vocabulary), and the
#: state after them.
Predict = Callable[[Tensor, Any], tuple[Tensor, Any]]


def predict_with(model: nn.Module, autocast: AbstractContextManager | None = None) -> Predict:
    """The predictions of one model.

    Args:
        model: Maps tokens and a state to logits and the next state; in eval mode, and under a late phase with the
            weights in it that are meant.
        autocast: Context of the forward passes; none by default.

    Returns:
        What `score` takes.
    """

    def predict(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        with autocast or nullcontext():
            logits, state = model(tokens, state)
        return logits.double().log_softmax(dim=-1), state

    return predict


def mean_of(predicts: Sequence[Predict]) -> Predict:
    """The mean of the probabilities of several models, each with a state of its own.

    Args:
        predicts: The models' predictions.

    Returns:
        The ensemble's.
    """

    def predict(tokens: Tensor, states: Any) -> tuple[Tensor, Any]:
        outputs = [one(tokens, state) for one, state in zip(predicts, states or [None] * len(predicts), strict=True)]
        log_p = torch.stack([log_p for log_p, _ in outputs])
        return log_p.logsumexp(dim=0) - math.log(len(predicts)), [state for _, state in outputs]

    return predict


def score(predict: Predict, batches: Iterable[tuple[Tensor, Tensor, bool]]) -> dict[str, float]:
    """Score predictions of held-out text; sums are float64.

    Args:
        predict: The predictions.
        batches: Tokens, labels and whether the state begins at zero, as `held_out` yields them.

    Returns:
        `bpc`, the mean of -log2 p of the right character, in bits; `nll`, the same in nats; `accuracy`, `ece` and
        `brier` of `latephase.evaluation.Metrics`, with one sample for each character.

    Raises:
        LatePhaseValueError: If the tokens are not those of the model's vocabulary.
        ValueError: If there is nothing to score.
    """
    metrics = Metrics()
    state: Any = None
    with torch.no_grad():
        for x, y, fresh in batches:
            log_p, state = predict(x, None if fresh else state)
            counts = y != UNSCORED
            metrics.update(log_p[counts], y[counts])
    scores = metrics.compute()
    return {"bpc": scores["nll"] / math.log(2), **scores}
