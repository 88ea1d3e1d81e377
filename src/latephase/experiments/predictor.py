"""What a method predicts with: one model, or the mean of several predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from latephase.evaluation import Metrics, evaluate_members, evaluate_model, in_use
from latephase.experiments.methods.method import Predictions
from latephase.experiments.task import Task


@dataclass(frozen=True)
class Predictor:
    """A classifier and its members.

    Attributes:
        model: The classifier, of which a model under late-phase weights is the averaged one in eval mode; of an
            ensemble, its first member or what all have in common.
        members: The predictions of each member; None without members.
        ensemble: Whether to predict with the mean of the members' probabilities instead of the model.
        task: Takes the logits out of what the model returns; None where it returns them.
    """

    model: nn.Module
    members: Predictions | None = None
    ensemble: bool = False
    task: Task | None = None

    def logits(self, x: Any) -> Tensor:
        """The method's own prediction, in eval mode and without gradients.

        Args:
            x: The model's input, such as images, (N, channels, height, width).

        Returns:
            Logits, (N, classes): for an ensemble the logarithms of its mean probabilities, float64.
        """
        if self.ensemble and self.members is not None:
            log_p = self.members(x).double().log_softmax(dim=-1)
            return log_p.logsumexp(dim=0) - math.log(len(log_p))
        with in_use(self.model):
            return self._classifier()(x)

    def score(self, batches: Iterable[tuple[Any, Tensor]], autocast: AbstractContextManager | None = None) -> Metrics:
        """Score the method's own prediction.

        Args:
            batches: Pairs of the model's input and the labels, (N,), of its predictions.
            autocast: Context of the forward passes; none by default.

        Returns:
            The scores.
        """
        if self.ensemble and self.members is not None:
            return evaluate_members(self.members, batches, autocast)[0]
        return evaluate_model(self._classifier(), batches, autocast)

    def _classifier(self) -> nn.Module:
        return self.model if self.task is None else _Classifier(self.model, self.task)


class _Classifier(nn.Module):
    """A model whose output is the logits alone."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, x: Any) -> Tensor:
        return self.task.predict(self.model, x)
