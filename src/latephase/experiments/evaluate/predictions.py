"""How good a subject's predictions are: its own, those of its members and of their ensemble, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from latephase.errors import LatePhaseError
from latephase.evaluation import MemberComparison, Metrics, RiskCoverage, Temperature, fit_temperature
from latephase.experiments.evaluate.subject import Subject, spread

# Held-out images that temperatures are fitted on, at most: their logits are kept until the fit is done.
HELD_OUT = 10_000


class Scores:
    """Scores of one stream of predictions.

    Args:
        temperature: What its logits are divided by for the scaled scores; None leaves these out.
    """

    def __init__(self, temperature: Temperature | None) -> None:
        self._temperature = temperature
        self._plain, self._scaled, self._risk = Metrics(), Metrics(), RiskCoverage()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a minibatch.

        Args:
            logits: (N, classes).
            labels: Class indices, (N,).
        """
        log_p = logits.double().log_softmax(dim=-1)
        self._plain.update(log_p, labels)
        self._risk.update(log_p, labels)
        if self._temperature is not None:
            self._scaled.update(self._temperature(logits), labels)

    def compute(self) -> dict[str, Any]:
        """The scores of everything added so far.

        Returns:
            Plain values.
        """
        scaled = None if self._temperature is None else self._scaled.compute()
        return {
            "scores": self._plain.compute(),
            "scaled": scaled,
            "temperature": None if self._temperature is None else self._temperature.to_dict(),
            "reliability": self._plain.reliability(),
            "risk_coverage": self._risk.compute().to_dict(),
        }


def predictions(subject: Subject) -> dict[str, Any]:
    """Score everything that a subject predicts with on its test images.

    Args:
        subject: The trained model.

    Returns:
        Parts `model`, `ensemble` and `members` (None without), `comparison` of the members with the model (None
        without), and in `no_temperature` why temperatures could not be fitted.
    """
    temperatures, reasons = _temperatures(subject)
    model = Scores(temperatures.get("model"))
    ensemble: Scores | None = None
    members: list[Scores] = []
    comparison = MemberComparison()
    for own, each, labels in _outputs(subject, subject.images.batches.plain(subject.images.split.test)):
        model.update(own, labels)
        if each is None:
            continue
        if ensemble is None:
            ensemble = Scores(temperatures.get("ensemble"))
            members = [Scores(temperatures.get(f"member {k}")) for k in range(len(each))]
        ensemble.update(mean_log_probability(each), labels)
        for scores, logits in zip(members, each, strict=True):
            scores.update(logits, labels)
        comparison.update(each, own, labels)
    return {
        "model": model.compute(),
        "ensemble": None if ensemble is None else ensemble.compute(),
        "members": [scores.compute() for scores in members] or None,
        "comparison": comparison.compute().to_dict() if members else None,
        "no_temperature": reasons,
    }


def mean_log_probability(members: Tensor) -> Tensor:
    """The logarithm of the members' mean probabilities.

    Args:
        members: Their logits, (K, N, classes).

    Returns:
        float64, (N, classes).
    """
    return members.double().log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(members))


def logits_of(subject: Subject) -> Callable[[Tensor], Tensor]:
    """The method's own prediction.

    Args:
        subject: The trained model.

    Returns:
        Maps normalised images to logits, (N, classes).
    """

    def predict(x: Tensor) -> Tensor:
        with torch.no_grad(), subject.trajectory.autocast():
            return subject.predictor.logits(x).float()

    return predict


def members_of(subject: Subject) -> Callable[[Tensor], Tensor] | None:
    """The members' predictions.

    Args:
        subject: The trained model.

    Returns:
        Maps normalised images to logits, (K, N, classes); None without members.
    """
    members = subject.predictor.members
    if members is None:
        return None

    def predict(x: Tensor) -> Tensor:
        with torch.no_grad(), subject.trajectory.autocast():
            return members(x).float()

    return predict


def _outputs(
    subject: Subject, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    predict, predict_members = logits_of(subject), members_of(subject)
    for x, y in batches:
        each = None if predict_members is None else predict_members(x)
        # An ensemble's own prediction is made of its members': there is no need to ask them twice.
        own = mean_log_probability(each) if subject.predictor.ensemble and each is not None else predict(x)
        yield own, each, y


def _temperatures(subject: Subject) -> tuple[dict[str, Temperature], dict[str, str]]:
    """A temperature for the model, the ensemble and each member, or why there is none."""
    held_out = subject.images.split.validation
    if held_out is None:
        return {}, {"all": "the recipe holds no validation images out (data.validation = 0)"}
    chosen = held_out.take(spread(len(held_out), HELD_OUT))
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for own, each, labels in _outputs(subject, subject.images.batches.plain(chosen)):
        kept.setdefault("model", []).append((own, labels))
        if each is not None:
            kept.setdefault("ensemble", []).append((mean_log_probability(each), labels))
            for k, logits in enumerate(each):
                kept.setdefault(f"member {k}", []).append((logits, labels))
    fitted: dict[str, Temperature] = {}
    reasons: dict[str, str] = {}
    for name, pairs in kept.items():
        try:
            fitted[name] = fit_temperature(pairs)
        except LatePhaseError as error:
            reasons[name] = str(error)
    return fitted, reasons
