"""What a method predicts with: one model, or the mean of several predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from latephase.evaluation import Metrics, evaluate_members, evaluate_model, in_use
from latephase.experiments.methods.method import Predictions


@dataclass(frozen=True)
class Predictor:
    """A classifier and its members.

    Attributes:
        model: The classifier, of which a model under late-phase weights is the averaged one in eval mode; of an
            ensemble, its first member or what all have in common.
        members: The predictions of each member; None without members.
        ensemble: Whether to predict with the mean of the members' probabilities instead of the model.
    """

    model: nn.Module
    members: Predictions | None = None
    ensemble: bool = False

    def logits(self, x: Tensor) -> Tensor:
        """The method's own prediction, in eval mode and without gradients.

        Args:
            x: Images, (N, channels, height, width).

        Returns:
            Logits, (N, classes): for an ensemble the logarithms of its mean probabilities, float64.
        """
        if self.ensemble and self.members is not None:
            log_p = self.members(x).double().log_softmax(dim=-1)
            return log_p.logsumexp(dim=0) - math.log(len(log_p))
        with in_use(self.model):
            return self.model(x)

    def score(
        self, batches: Iterable[tuple[Tensor, Tensor]], autocast: AbstractContextManager | None = None
    ) -> Metrics:
        """Score the method's own prediction.

        Args:
            batches: Pairs of images and labels.
            autocast: Context of the forward passes; none by default.

        Returns:
            The scores.
        """
        if self.ensemble and self.members is not None:
            return evaluate_members(self.members, batches, autocast)[0]
        return evaluate_model(self.model, batches, autocast)
