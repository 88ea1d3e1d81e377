"""Selective prediction: the error of the samples that a model is surest of, against how many those are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import at_least, classified, finite
from latephase.evaluation._result import Result


@dataclass(frozen=True)
class RiskCoverageCurve(Result):
    """The error that is left when a model may abstain.

    Attributes:
        samples: How many predictions there were.
        error: The error at full coverage, a fraction.
        aurc: Area under the curve: the mean over i = 1..n of the error among the i surest predictions.
        aurc_best: What it would be if every wrong prediction were less sure than every right one, at the same error.
        aurc_excess: aurc - aurc_best; how much the confidence's order costs.
        coverage: Fractions of samples kept.
        risk: The error among those, one for each coverage.
    """

    samples: int
    error: float
    aurc: float
    aurc_best: float
    aurc_excess: float
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


def risk_coverage(confidence: Tensor, correct: Tensor, points: int = 101) -> RiskCoverageCurve:
    r"""Risk-coverage curve and its area (El-Yaniv and Wiener, 2010; Geifman and El-Yaniv, 2017 and 2019).

    With the n predictions in falling order of confidence and \(e_j\) = 1 where the j-th is wrong,

    .. math:: r_i = \frac1i \sum_{j \le i} e_j, \qquad \mathrm{AURC} = \frac1n \sum_{i=1}^n r_i .

    Predictions of equal confidence have no order: each counts with the mean error of its group, which gives the exact
    expectation over all orders. The data's order therefore never matters.

    Args:
        confidence: How sure the model is, (N,); any scale, larger means surer.
        correct: Whether the prediction is right, bool, (N,).
        points: At how many equally spaced numbers of kept samples, from 1 to n, the curve is given; at most n are.

    Returns:
        The curve and its area.

    Raises:
        LatePhaseValueError: No samples, a confidence that is not finite, or shapes that differ.

    Example:
        >>> curve = risk_coverage(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
        >>> [round(r, 3) for r in curve.risk], round(curve.aurc, 3)
        ([0.0, 0.5, 0.333], 0.278)
    """
    at_least("risk_coverage: points", points, 2)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise LatePhaseValueError(
            f"risk_coverage: confidence of shape {tuple(confidence.shape)} and correct of shape "
            f"{tuple(correct.shape)}; both are (N,)"
        )
    n = len(confidence)
    if not n:
        raise LatePhaseValueError("risk_coverage: no samples; it needs at least one prediction")
    finite("risk_coverage: confidence", confidence)
    wrong = 1 - correct.double()
    order = confidence.argsort(descending=True)
    _, group, size = torch.unique_consecutive(confidence[order], return_inverse=True, return_counts=True)
    mean = torch.zeros(len(size), dtype=torch.float64, device=wrong.device).index_add_(0, group, wrong[order]) / size
    risk = mean[group].cumsum(0) / torch.arange(1, n + 1, dtype=torch.float64, device=wrong.device)
    best = _best(int(wrong.sum()), n)
    kept = torch.linspace(1, n, min(points, n), dtype=torch.float64).round().long()
    aurc = float(risk.mean())
    return RiskCoverageCurve(
        samples=n,
        error=float(wrong.mean()),
        aurc=aurc,
        aurc_best=best,
        aurc_excess=aurc - best,
        coverage=tuple((kept.double() / n).tolist()),
        risk=tuple(risk.cpu()[kept - 1].tolist()),
    )


def _best(wrong: int, n: int) -> float:
    i = torch.arange(1, n + 1, dtype=torch.float64)
    return float(((i - (n - wrong)).clamp(min=0) / i).mean())


class RiskCoverage:
    """Collects the confidence (the largest probability) of a stream of predictions.

    Two numbers are kept for each sample: the curve needs them all at once.

    Example:
        >>> risk = RiskCoverage()
        >>> risk.update(torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log(), torch.tensor([0, 0]))
        >>> risk.compute().error
        0.5
    """

    def __init__(self) -> None:
        self._confidence: list[Tensor] = []
        self._correct: list[Tensor] = []

    def update(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Add a minibatch.

        Args:
            log_probabilities: Natural logarithms of the predicted probabilities, (N, classes).
            labels: Class indices, (N,).

        Raises:
            LatePhaseValueError: Labels that do not fit the predictions.
        """
        classified("RiskCoverage", log_probabilities, labels)
        confidence, predicted = log_probabilities.detach().double().max(dim=1)
        # The logarithm keeps apart what the probability rounds to 1.
        self._confidence.append(confidence.cpu())
        self._correct.append((predicted == labels).cpu())

    def compute(self, points: int = 101) -> RiskCoverageCurve:
        """The curve of everything added so far.

        Args:
            points: At how many numbers of kept samples the curve is given.

        Returns:
            The curve and its area.

        Raises:
            LatePhaseValueError: Nothing was added.
        """
        if not self._correct:
            raise LatePhaseValueError("RiskCoverage: no predictions were added")
        return risk_coverage(torch.cat(self._confidence), torch.cat(self._correct), points)
