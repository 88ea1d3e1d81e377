"""Accuracy, negative log-likelihood, Brier score and calibration, added up over minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.evaluation._checks import classified


class Metrics:
    """What a stream of predicted class probabilities is worth.

    Only sums are kept, so memory does not grow with the data set. With p the predicted probabilities and y the label:

    - accuracy: how often argmax p = y;
    - nll: the mean of -log p_y, in nats;
    - brier: the mean of sum_c (p_c - [c = y])^2, between 0 and 2 (Brier, 1950);
    - ece: sum_b (n_b / n) |accuracy_b - confidence_b| over equal bins (i/bins, (i+1)/bins] of the confidence max p
      (Guo et al., 2017). A confidence of exactly 1 belongs to the last bin, which is why torchmetrics is not used
      here: it puts it into a bin of its own.

    Args:
        bins: Number of confidence bins.

    Example:
        >>> metrics = Metrics()
        >>> metrics.update(torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log(), torch.tensor([0, 0]))
        >>> metrics.compute()["accuracy"]
        0.5
    """

    def __init__(self, bins: int = 15) -> None:
        self.bins = bins
        self.samples = 0
        self._correct = self._nll = self._brier = 0.0
        self._counts = torch.zeros(3, bins, dtype=torch.float64)

    def update(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Add a minibatch.

        Args:
            log_probabilities: Natural logarithms of the predicted probabilities, (N, classes).
            labels: Class indices, (N,).

        Raises:
            LatePhaseValueError: Labels that do not fit the predictions.
        """
        classified("Metrics", log_probabilities, labels)
        labels = labels.long()
        log_p = log_probabilities.detach().to(torch.float64)
        p = log_p.exp()
        confidence, predicted = p.max(dim=1)
        correct = (predicted == labels).to(torch.float64)
        p_label = p.gather(1, labels[:, None])[:, 0]
        bin_of = (confidence * self.bins).ceil().long().sub_(1).clamp_(0, self.bins - 1)
        sums = torch.stack([torch.ones_like(correct), confidence, correct])
        counts = torch.zeros(3, self.bins, dtype=torch.float64, device=log_p.device)
        self._counts += counts.index_add_(1, bin_of, sums).cpu()
        self._correct += float(correct.sum())
        self._nll -= float(log_p.gather(1, labels[:, None]).sum())
        self._brier += float(p.square().sum() - 2 * p_label.sum()) + len(labels)
        self.samples += len(labels)

    def compute(self) -> dict[str, float]:
        """The four scores of everything added so far.

        Returns:
            `accuracy` (0 to 1), `nll` (nats), `ece` (0 to 1) and `brier` (0 to 2).

        Raises:
            ValueError: If nothing was added.
        """
        if not self.samples:
            raise ValueError("no predictions were added: there is nothing to score")
        _, confidence, correct = self._counts
        return {
            "accuracy": self._correct / self.samples,
            "nll": self._nll / self.samples,
            "ece": float((confidence - correct).abs().sum()) / self.samples,
            "brier": self._brier / self.samples,
        }

    def reliability(self) -> dict[str, list[float]]:
        """The bins of a reliability diagram.

        Returns:
            For each bin, `count`, the sum of `confidence` and the number `correct`.
        """
        names = ("count", "confidence", "correct")
        return {name: row.tolist() for name, row in zip(names, self._counts, strict=True)}
