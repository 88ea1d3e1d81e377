"""Errors of a subject on corrupted test images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latephase.errors import LatePhaseError
from latephase.evaluation.corruptions import (
    OWN_SET,
    PUBLISHED_KINDS,
    CorruptedSet,
    CorruptionErrors,
    builtin_sets,
    corruption_errors,
    published_sets,
    relative_errors,
)
from latephase.experiments.data import AnyImages
from latephase.experiments.evaluate.options import Options
from latephase.experiments.evaluate.predictions import logits_of, mean_log_probability, members_of
from latephase.experiments.evaluate.subject import Subject, spread

# Corrupted images are kept for the next predictor and method of the same seed if they take less than this.
_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Corruptions:
    """Corrupted images of one seed's test set.

    Attributes:
        sets: Each kind at each severity.
        source: What they are to be called.
        clean: The images that they were made of; None if those are not known (the published arrays).
        note: What was done to fit the model, in words; empty if nothing.
    """

    sets: list[CorruptedSet]
    source: str
    clean: AnyImages | None
    note: str


def open_corruptions(test: AnyImages, options: Options) -> Corruptions:
    """Corrupt test images, or find the published arrays.

    Args:
        test: The test images of a seed.
        options: Source, kinds, severities and number of images.

    Returns:
        The sets; built-in ones are made when they are first gone through.

    Raises:
        LatePhaseError: If files are missing or wrong, or their images are not the model's.
    """
    assert options.corruptions is not None
    if options.corruptions != "builtin":
        return _published(Path(options.corruptions), test, options)
    clean = test.take(spread(len(test), options.corruption_images))
    pixels = torch.cat([part for part, _ in clean.chunks(1000)])
    grey = pixels.shape[1] == 1
    pixels = pixels.expand(-1, 3, -1, -1).contiguous() if grey else pixels
    sets = [
        part
        for part in builtin_sets(pixels, clean.labels, options.kinds or None)
        if part.severity in options.severities
    ]
    if len(sets) * pixels.numel() <= _KEPT_BYTES:
        sets = [CorruptedSet(part.kind, part.severity, _Kept(part)) for part in sets]
    note = "grey images are corrupted in colour and made grey again" if grey else ""
    return Corruptions(sets, OWN_SET, clean, note)


def _published(folder: Path, test: AnyImages, options: Options) -> Corruptions:
    sets = [
        part for part in published_sets(folder, options.kinds or PUBLISHED_KINDS) if part.severity in options.severities
    ]
    shape = tuple(next(iter(sets[0].batches))[0].shape[1:])
    if shape != test.shape:
        raise LatePhaseError(
            f"{folder} holds images of shape {shape}, and the model takes {test.shape}; published corruptions are for "
            "the data set that they were made of"
        )
    return Corruptions(sets, folder.name, None, "")


class _Kept:
    """Minibatches that are made at the first pass and kept for the next."""

    def __init__(self, part: CorruptedSet) -> None:
        self._part = part
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._batches:
            self._batches = list(self._part.batches)
        return iter(self._batches)


def robustness(subject: Subject, corruptions: Corruptions, severities: Sequence[int]) -> dict[str, CorruptionErrors]:
    """Errors of the model and of the members' ensemble.

    Args:
        subject: The trained model.
        corruptions: What it is shown.
        severities: The severities of each kind.

    Returns:
        Errors of `model` and, with members, of `ensemble`; a method that predicts as an ensemble has only the first.
    """
    predict, members = logits_of(subject), members_of(subject)
    predictors: dict[str, Callable[[Tensor], Tensor]] = {"model": predict}
    if members is not None and not subject.predictor.ensemble:
        predictors["ensemble"] = lambda x: mean_log_probability(members(x))
    found = {}
    for part, classify in predictors.items():
        clean = _clean_error(subject, corruptions.clean, classify)
        sets, source = corruptions.sets, corruptions.source
        found[part] = corruption_errors(_on_pixels(subject, classify), sets, source, clean, severities)
    return found


def _clean_error(subject: Subject, images: AnyImages | None, classify: Callable[[Tensor], Tensor]) -> float:
    wrong = samples = 0
    for x, y in subject.images.batches.plain(subject.images.split.test if images is None else images):
        wrong += int((classify(x).argmax(dim=1) != y).sum())
        samples += len(y)
    return wrong / samples


@dataclass(frozen=True)
class _Pixels:
    """A minibatch of images in the form that batches normalise."""

    pixels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def chunks(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.pixels.split(n):
            yield part, torch.zeros(len(part), dtype=torch.int64)


def _on_pixels(subject: Subject, classify: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """From uint8 images to logits on the CPU."""
    batches, grey = subject.images.batches, subject.images.split.train.shape[0] == 1

    def predict(pixels: Tensor) -> Tensor:
        if grey:
            pixels = pixels.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
        return torch.cat([classify(x).cpu() for x, _ in batches.plain(_Pixels(pixels))])  # type: ignore[arg-type]

    return predict


def with_base(errors: CorruptionErrors, base: CorruptionErrors | None) -> dict[str, Any]:
    """Errors as plain values, with those relative to a base.

    Args:
        errors: A model's errors.
        base: The base's; None if there is none.

    Returns:
        The errors' fields, and `relative` (None without a base, or where the base makes no error: then `no_relative`
        says so).
    """
    entry: dict[str, Any] = {**errors.to_dict(), "relative": None, "no_relative": None}
    if base is not None:
        try:
            entry["relative"] = relative_errors(errors, base).to_dict()
        except LatePhaseError as error:
            entry["no_relative"] = str(error)
    return entry
