"""Out-of-distribution detection: scores of single predictions, and how well they tell two data sets apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import finite
from latephase.evaluation._result import Result


def uncertainties(logits: Tensor) -> dict[str, Tensor]:
    r"""How unlike the training data a model finds its inputs; larger means more out-of-distribution.

    With p the predicted probabilities, for members the mean of theirs, in nats:

    - entropy: \(-\sum_c p_c \log p_c\);
    - max_probability: \(-\max_c p_c\) (Hendrycks and Gimpel, ICLR 2017), negative so that larger is stranger;
    - energy: \(-\log\sum_c e^{z_c}\) of the logits z at temperature 1 (Liu, Wang, Owens and Li, NeurIPS 2020); for
      members the mean of their energies. It needs logits: log-probabilities all have energy 0;
    - mutual_information, for members only: the entropy of their mean less the mean of their entropies (Depeweg et
      al., ICML 2018), which is how much they disagree.

    Args:
        logits: (N, classes), or (K, N, classes) for K members.

    Returns:
        One float64 tensor (N,) for each score.

    Raises:
        LatePhaseValueError: Another shape, or logits that are not finite.

    Example:
        >>> scores = uncertainties(torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]]))  # two members, sure of the opposite
        >>> round(float(scores["mutual_information"]), 2), round(float(scores["max_probability"]), 2)
        (0.69, -0.5)
    """
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or 0 in logits.shape[-1:]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LatePhaseValueError(f"uncertainties: {got}; use logits (N, classes), or (K, N, classes) for members")
    z = finite("uncertainties: logits", logits.detach()).double()
    log_p = z.log_softmax(dim=-1)
    energy = -z.logsumexp(dim=-1)
    if z.ndim == 2:
        return {"entropy": _entropy(log_p), "max_probability": -_surest(log_p), "energy": energy}
    mean = log_p.logsumexp(dim=0) - math.log(len(log_p))
    total = _entropy(mean)
    return {
        "entropy": total,
        "max_probability": -_surest(mean),
        "energy": energy.mean(dim=0),
        # Negative by rounding only (Jensen).
        "mutual_information": (total - _entropy(log_p).mean(dim=0)).clamp(min=0),
    }


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(dim=-1)


def _surest(log_p: Tensor) -> Tensor:
    return log_p.exp().max(dim=-1).values


def collect_uncertainties(predict: Callable[[Tensor], Tensor], batches: Iterable[Any]) -> dict[str, Tensor]:
    """The scores of a whole data set, in one pass.

    Only the scores are kept, four numbers for each sample at most: exact ranks need them all.

    Args:
        predict: Maps inputs to logits, (N, classes) or (K, N, classes): a model in eval mode, or `late.predict`.
        batches: Inputs, or tuples that begin with them.

    Returns:
        One float64 tensor on the CPU, (samples,), for each score.

    Raises:
        LatePhaseValueError: No samples, or an output that holds no logits.

    Example:
        >>> found = collect_uncertainties(torch.nn.Linear(3, 4), [torch.randn(8, 3), torch.randn(2, 3)])
        >>> sorted(found), tuple(found["entropy"].shape)
        (['energy', 'entropy', 'max_probability'], (10,))
    """
    parts: dict[str, list[Tensor]] = {}
    for batch in batches:
        with torch.no_grad():
            logits = predict(batch[0] if isinstance(batch, (tuple, list)) else batch)
        for name, scores in uncertainties(logits).items():
            parts.setdefault(name, []).append(scores.cpu())
    collected = {name: torch.cat(part) for name, part in parts.items()}
    if not collected or not len(collected["entropy"]):
        raise LatePhaseValueError("collect_uncertainties: no samples; the data set is empty or its iterator is spent")
    return collected


@dataclass(frozen=True)
class Detection(Result):
    """How well a score tells out-of-distribution samples from those in distribution.

    Attributes:
        auroc: Probability that an out-of-distribution sample scores above one in distribution, ties counted half.
        auroc_standard_error: Its standard error over samples (DeLong, DeLong and Clarke-Pearson, 1988); None where a
            set has one sample only. It says nothing of other seeds.
        aupr_out: Average precision with the out-of-distribution samples as the positive class. Its chance level is
            their share of all samples, so compare it at equal set sizes only.
        aupr_in: Average precision with the samples in distribution as the positive class.
        fpr95: Fraction of out-of-distribution samples that pass a threshold which at least 95% of the samples in
            distribution pass (in distribution is the positive class, as in Liang, Li and Srikant, ICLR 2018).
        inside: Samples in distribution.
        outside: Samples out of distribution.
    """

    auroc: float
    auroc_standard_error: float | None
    aupr_out: float
    aupr_in: float
    fpr95: float
    inside: int
    outside: int


def detect(inside: Tensor, outside: Tensor) -> Detection:
    """Score a detector that calls a sample out-of-distribution when its score is high.

    Equal scores are exact everywhere: half a win in the AUROC, one threshold in precision and false-positive rate.

    Args:
        inside: Scores of samples in distribution, (N,).
        outside: Scores of samples out of distribution, (M,).

    Returns:
        AUROC, average precision both ways, false-positive rate at 95% true positives.

    Raises:
        LatePhaseValueError: An empty set, another shape, or a score that is not finite.

    Example:
        >>> found = detect(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.3, 0.4]))
        >>> round(found.auroc, 4), found.fpr95
        (0.9167, 0.5)
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    a, b = _scores("inside", inside), _scores("outside", outside)
    out = np.concatenate([np.zeros(len(a), dtype=np.int64), np.ones(len(b), dtype=np.int64)])
    scores = np.concatenate([a, b])
    # The smallest threshold that lets at least 95% pass: in whole numbers, as 0.95 n is not exact.
    threshold = np.sort(a)[(95 * len(a) + 99) // 100 - 1]
    return Detection(
        auroc=float(roc_auc_score(out, scores)),
        auroc_standard_error=_delong(a, b),
        aupr_out=float(average_precision_score(out, scores)),
        aupr_in=float(average_precision_score(1 - out, -scores)),
        fpr95=float((b <= threshold).mean()),
        inside=len(a),
        outside=len(b),
    )


def detect_all(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> dict[str, Detection]:
    """`detect` for every score that `collect_uncertainties` gave.

    Args:
        inside: Scores by name, of samples in distribution.
        outside: The same scores of samples out of distribution.

    Returns:
        A `Detection` for each name.

    Raises:
        LatePhaseValueError: Names that differ, or what `detect` refuses.

    Example:
        >>> scores = {"entropy": torch.tensor([0.1, 0.2])}
        >>> detect_all(scores, {"entropy": torch.tensor([0.3, 0.4])})["entropy"].auroc
        1.0
    """
    if set(inside) != set(outside):
        raise LatePhaseValueError(
            f"detect_all: scores {sorted(inside)} inside and {sorted(outside)} outside; both must come from the same "
            "predictor"
        )
    return {name: detect(inside[name], outside[name]) for name in inside}


def _scores(name: str, scores: Tensor) -> np.ndarray:
    if scores.ndim != 1 or not len(scores):
        raise LatePhaseValueError(
            f"detect: {name} has shape {tuple(scores.shape)}; it needs the scores of at least one sample, (N,)"
        )
    return finite(f"detect: {name}", scores).detach().cpu().double().numpy()


def _delong(a: np.ndarray, b: np.ndarray) -> float | None:
    """Standard error of the AUROC from each sample's own share of it (its placement among the others)."""
    from scipy.stats import rankdata

    if len(a) < 2 or len(b) < 2:
        return None
    ranks = rankdata(np.concatenate([a, b]))
    of_a = 1 - (ranks[: len(a)] - rankdata(a)) / len(b)
    of_b = (ranks[len(a) :] - rankdata(b)) / len(a)
    return float(np.sqrt(of_a.var(ddof=1) / len(a) + of_b.var(ddof=1) / len(b)))
