"""How well a subject tells images of other sets from those of its own test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latephase.evaluation import collect_uncertainties, detect_all
from latephase.experiments.evaluate.ood_sets import OodSet
from latephase.experiments.evaluate.predictions import logits_of, members_of
from latephase.experiments.evaluate.subject import Subject

BINS = 30


def detections(subject: Subject, sets: Sequence[OodSet], advance: Callable[[], None]) -> dict[str, Any]:
    """Score every set with the model and with the members.

    Args:
        subject: The trained model.
        sets: The out-of-distribution sets.
        advance: Called after each set.

    Returns:
        For each set its parts `model` (None for a method that predicts as an ensemble, whose parts are one) and
        `ensemble` (None without members): a detection by score, and the entropies' histograms.
    """
    predictors = _predictors(subject)
    plain = subject.images.batches.plain
    inside = {
        part: collect_uncertainties(predict, plain(subject.images.split.test)) for part, predict in predictors.items()
    }
    found: dict[str, Any] = {}
    for outside in sets:
        entry: dict[str, Any] = {"model": None, "ensemble": None}
        for part, predict in predictors.items():
            scores = collect_uncertainties(predict, plain(outside))  # type: ignore[arg-type]
            entry[part] = {
                "scores": {name: found.to_dict() for name, found in detect_all(inside[part], scores).items()},
                "entropy": _histograms(inside[part], scores, len(subject.images.split.train.classes)),
            }
        found[outside.name] = {"images": len(outside), "changes": outside.changes, **entry}
        advance()
    return found


def _predictors(subject: Subject) -> dict[str, Callable[[Tensor], Tensor]]:
    members = members_of(subject)
    predictors = {} if subject.predictor.ensemble else {"model": logits_of(subject)}
    return predictors if members is None else predictors | {"ensemble": members}


def _histograms(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor], classes: int) -> dict[str, list[float]]:
    """Shares of samples by entropy, in equal bins from 0 to that of the uniform distribution."""
    top = float(torch.tensor(float(classes)).log()) or 1.0
    parts = {"inside": inside["entropy"], "outside": outside["entropy"]}
    shares = {
        name: (torch.histc(values.clamp(0, top), BINS, 0, top) / len(values)).tolist() for name, values in parts.items()
    }
    return {"edges": [top * i / BINS for i in range(BINS + 1)], **shares}
