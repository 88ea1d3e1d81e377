"""Calibration: temperature scaling, and the bins of a reliability diagram with their error bars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import classified, finite
from latephase.evaluation._result import Result
from latephase.evaluation.metrics import Metrics

_MAX_DOUBLINGS = 200
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Temperature(Result):
    """One number that divides all logits.

    Attributes:
        temperature: T; above 1 the model was too sure, below 1 not sure enough.
        samples: How many held-out samples it was fitted on.
        nll_before: Negative log-likelihood of those at T = 1, in nats.
        nll_after: The same at the fitted temperature.
    """

    temperature: float
    samples: int
    nll_before: float
    nll_after: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-probabilities after scaling.

        Args:
            logits: (..., classes); for an ensemble, the logarithms of its mean probabilities.

        Returns:
            log softmax(logits / T), float64, of the same shape.
        """
        return (logits.double() / self.temperature).log_softmax(dim=-1)


def fit_temperature(predictions: Iterable[tuple[Tensor, Tensor]]) -> Temperature:
    r"""Fit the temperature on held-out predictions (Guo, Pleiss, Sun and Weinberger, ICML 2017).

    Minimises the mean negative log-likelihood of softmax(z / T). In \(\beta = 1/T\) that is convex,

    .. math:: L(\beta) = \frac1n \sum_i \log\sum_c e^{\beta z_{ic}} - \beta z_{iy_i}, \qquad
              L'(\beta) = \frac1n \sum_i E_p[z_i] - z_{iy_i}, \qquad L''(\beta) = \frac1n \sum_i \mathrm{Var}_p[z_i],

    so a Newton iteration inside a bracket finds the one minimum, in float64. Fit on data that was neither trained nor
    tested on: the temperature of training data is too low, that of test data flatters the test.

    Args:
        predictions: Pairs of logits (N, classes) and labels (N,), for example `[(model(x), y) for x, y in loader]`.
            They are kept, in their own dtype, until the fit is done.

    Returns:
        The temperature, and the likelihood before and after.

    Raises:
        LatePhaseValueError: No predictions, logits that are not finite, labels that do not fit; or no temperature is
            best: every sample is classified correctly (T would go to 0), or the labels' logits are not above the
            average (T would go to infinity).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> fitted = fit_temperature([(logits, torch.tensor([0, 0, 1, 1]))])
        >>> round(fitted.temperature, 4)  # three of four are right: p = 3/4, logit log 3
        3.641
    """
    chunks = [(logits.detach(), labels) for logits, labels in predictions]
    for logits, labels in chunks:
        classified("fit_temperature", logits, labels)
        finite("fit_temperature: logits", logits)
    samples = sum(len(labels) for _, labels in chunks)
    if not samples:
        raise LatePhaseValueError("fit_temperature: no predictions; it needs held-out samples, some hundred at least")
    if _slope(chunks, samples, 0.0) >= 0:
        raise LatePhaseValueError(
            f"fit_temperature: on these {samples} samples the labels' logits are not above the average logit, so no "
            "temperature is best; the predictions are no better than chance, or belong to other labels"
        )
    if sum(float((z.max(dim=1).values - _of(z, y)).double().sum()) for z, y in chunks) == 0:
        raise LatePhaseValueError(
            f"fit_temperature: all {samples} samples are classified correctly, so the temperature would go to 0; fit "
            "on more held-out data, which the model has not been trained on"
        )
    beta = _root(chunks, samples)
    return Temperature(1 / beta, samples, _nll(chunks, samples, 1.0), _nll(chunks, samples, beta))


Chunks = list[tuple[Tensor, Tensor]]


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels.long()[:, None])[:, 0]


def _nll(chunks: Chunks, samples: int, beta: float) -> float:
    return -sum(float(_of((z.double() * beta).log_softmax(dim=1), y).sum()) for z, y in chunks) / samples


def _slope(chunks: Chunks, samples: int, beta: float) -> float:
    return _slopes(chunks, samples, beta)[0]


def _slopes(chunks: Chunks, samples: int, beta: float) -> tuple[float, float]:
    first = second = 0.0
    for logits, labels in chunks:
        # Relative to the label's logit, so that a sample of which the model is sure adds exactly nothing.
        z = logits.double()
        z = z - _of(z, labels)[:, None]
        p = (beta * z).softmax(dim=1)
        mean = (p * z).sum(dim=1)
        first += float(mean.sum())
        second += float((p * (z - mean[:, None]).square()).sum())
    return first / samples, second / samples


def _root(chunks: Chunks, samples: int) -> float:
    """Where the slope is zero: Newton's iteration, halving the bracket whenever a step would leave it."""
    low, high = 1.0, 1.0
    for _ in range(_MAX_DOUBLINGS):
        if _slope(chunks, samples, high) >= 0:
            break
        low, high = high, 2 * high
    for _ in range(_MAX_DOUBLINGS):
        if _slope(chunks, samples, low) <= 0:
            break
        low, high = low / 2, low
    beta = 0.5 * (low + high)
    for _ in range(_MAX_DOUBLINGS):
        slope, curvature = _slopes(chunks, samples, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = beta - slope / curvature if curvature > 0 else math.nan
        following = step if low < step < high else 0.5 * (low + high)
        if abs(following - beta) <= 1e-13 * beta:
            break
        beta = following
    return beta


@dataclass(frozen=True)
class ReliabilityBin(Result):
    """One bin of a reliability diagram.

    Attributes:
        low: Confidences in this bin are above this,
        high: and at most this.
        count: Samples in the bin.
        confidence: Their mean confidence; None for an empty bin.
        accuracy: The fraction of them that is right; None for an empty bin.
        accuracy_low: Lower end of the accuracy's 95% interval (Wilson, 1927); None for an empty bin.
        accuracy_high: Upper end of it.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None


def reliability_bins(metrics: Metrics) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram, with error bars.

    Args:
        metrics: Scores to which predictions were added.

    Returns:
        As many bins as the calibration error was computed with, in order of confidence.

    Raises:
        LatePhaseValueError: Nothing was added.

    Example:
        >>> import torch
        >>> metrics = Metrics(bins=2)
        >>> metrics.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log(), torch.tensor([0, 1]))
        >>> reliability_bins(metrics)[1].accuracy
        0.5
    """
    if not metrics.samples:
        raise LatePhaseValueError("reliability_bins: no predictions were added to these metrics")
    return bins_of_sums(**metrics.reliability())


def bins_of_sums(
    count: Sequence[float], confidence: Sequence[float], correct: Sequence[float]
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram from their sums, which may be added up over runs first.

    Args:
        count: Samples in each bin.
        confidence: The sum of their confidences.
        correct: How many of them are right.

    Returns:
        The bins, in order of confidence.

    Example:
        >>> low, high = bins_of_sums([0, 4], [0.0, 3.5], [0, 3])
        >>> low.accuracy, high.accuracy, high.confidence
        (None, 0.75, 0.875)
    """
    rows = list(zip(count, confidence, correct, strict=True))
    return tuple(_bin(i / len(rows), (i + 1) / len(rows), *row) for i, row in enumerate(rows))


def _bin(low: float, high: float, count: float, confidence: float, correct: float) -> ReliabilityBin:
    if not count:
        return ReliabilityBin(low, high, 0, None, None, None, None)
    accuracy = correct / count
    shrink = 1 + _Z95**2 / count
    centre = (accuracy + _Z95**2 / (2 * count)) / shrink
    half = _Z95 / shrink * math.sqrt(accuracy * (1 - accuracy) / count + _Z95**2 / (4 * count**2))
    interval = max(0.0, centre - half), min(1.0, centre + half)
    return ReliabilityBin(low, high, int(count), confidence / count, accuracy, *interval)
