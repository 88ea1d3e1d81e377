"""Errors under corruption: of each kind and severity, in the mean, and relative to a base model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latephase.errors import LatePhaseValueError
from latephase.evaluation._checks import classified
from latephase.evaluation._result import Result
from latephase.evaluation.corruptions.kind import SEVERITIES
from latephase.evaluation.corruptions.sets import CorruptedSet


@dataclass(frozen=True)
class CorruptionErrors(Result):
    """Errors of one model on corrupted data.

    Attributes:
        source: Which corruptions, for example `OWN_SET` or "CIFAR-10-C".
        samples: Samples of each kind and severity.
        errors: For each kind, the error (a fraction) at each severity.
        mean: The mean over all kinds and severities, each counted once.
        by_severity: The mean over kinds at each severity.
        clean: The error on the uncorrupted data, if it was given.
        severities: Which severities; all five unless a choice was asked for.
    """

    source: str
    samples: int
    errors: dict[str, tuple[float, ...]]
    mean: float
    by_severity: tuple[float, ...]
    clean: float | None
    severities: tuple[int, ...] = tuple(range(1, SEVERITIES + 1))


def corruption_errors(
    classify: Callable[[Tensor], Tensor],
    sets: Iterable[CorruptedSet],
    source: str,
    clean: float | None = None,
    severities: Sequence[int] = tuple(range(1, SEVERITIES + 1)),
) -> CorruptionErrors:
    """Errors of a model on every set, one minibatch at a time.

    Args:
        classify: Maps uint8 images (N, 3, height, width) to logits (N, classes): the model in eval mode after its own
            normalisation. For members' ensembles, any scores whose largest is the prediction.
        sets: `builtin_sets(...)` or `published_sets(...)`.
        source: What to call these corruptions in results.
        clean: The model's error on the uncorrupted data, a fraction.
        severities: The severities that every kind is there at. Means over other than all five are no published ones.

    Returns:
        The errors.

    Raises:
        LatePhaseValueError: No sets, an empty one, one given twice, a kind without all severities, sets of
            different sizes, or labels that do not fit the model's classes.

    Example:
        >>> import torch
        >>> from latephase.evaluation.corruptions import OWN_SET, builtin_sets
        >>> images, labels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
        >>> first = lambda images: torch.eye(2)[torch.zeros(len(images), dtype=torch.long)]  # always class 0
        >>> corruption_errors(first, builtin_sets(images, labels, ["fog"]), OWN_SET).mean
        0.0
    """
    if clean is not None and not 0 <= clean <= 1:
        raise LatePhaseValueError(f"corruption_errors: clean {clean}; it is an error rate from 0 to 1")
    wanted = sorted(set(severities))
    if not wanted or not set(wanted) <= set(range(1, SEVERITIES + 1)):
        raise LatePhaseValueError(f"corruption_errors: severities {tuple(severities)}; use some of 1 to {SEVERITIES}")
    found: dict[str, dict[int, float]] = {}
    sizes: set[int] = set()
    for part in sets:
        wrong = samples = 0
        for images, labels in part.batches:
            with torch.no_grad():
                logits = classify(images)
            classified("corruption_errors", logits, labels)
            wrong += int((logits.argmax(dim=1).cpu() != labels.cpu()).sum())
            samples += len(labels)
        if not samples:
            raise LatePhaseValueError(f"corruption_errors: {part.kind} at severity {part.severity} holds no images")
        if part.severity in found.setdefault(part.kind, {}):
            raise LatePhaseValueError(f"corruption_errors: {part.kind} at severity {part.severity} is there twice")
        found[part.kind][part.severity] = wrong / samples
        sizes.add(samples)
    if not found:
        raise LatePhaseValueError("corruption_errors: no sets; pass builtin_sets(...) or published_sets(...)")
    for kind, errors in found.items():
        if sorted(errors) != wanted:
            needed = f"all of 1 to {SEVERITIES}" if len(wanted) == SEVERITIES else f"severities {wanted}"
            raise LatePhaseValueError(f"corruption_errors: {kind} at severities {sorted(errors)}; {needed} are needed")
    if len(sizes) > 1:
        raise LatePhaseValueError(f"corruption_errors: sets of {sorted(sizes)} images; all must hold the same images")
    table = {kind: tuple(errors[s] for s in wanted) for kind, errors in found.items()}
    by_severity = tuple(sum(column) / len(table) for column in zip(*table.values(), strict=True))
    mean = sum(by_severity) / len(wanted)
    return CorruptionErrors(source, sizes.pop(), table, mean, by_severity, clean, tuple(wanted))


@dataclass(frozen=True)
class RelativeCorruptionErrors(Result):
    """Corruption errors relative to a base model; 1 is as good as the base, 0.9 has a tenth less error.

    Attributes:
        mce: Mean corruption error: the mean of `by_kind`. Published values are 100 times this, with AlexNet as base.
        by_kind: For each kind the ratio of the errors summed over severities.
        relative_mce: The same of the errors beyond the clean ones, which is the loss of robustness apart from accuracy;
            None unless both clean errors are known and the base loses from every kind.
        relative_by_kind: Its ratios; empty if `relative_mce` is None.
    """

    mce: float
    by_kind: dict[str, float]
    relative_mce: float | None
    relative_by_kind: dict[str, float]


def relative_errors(model: CorruptionErrors, base: CorruptionErrors) -> RelativeCorruptionErrors:
    r"""Mean corruption error relative to a base (Hendrycks and Dietterich, ICLR 2019).

    With the errors \(E_{s,c}\) at severity s of kind c, and over C kinds,

    .. math:: \mathrm{CE}_c = \frac{\sum_s E^{model}_{s,c}}{\sum_s E^{base}_{s,c}}, \qquad
              \mathrm{mCE} = \frac1C \sum_c \mathrm{CE}_c,

    and relative mCE with \(E_{s,c} - E_{clean}\) in place of \(E_{s,c}\).

    Args:
        model: The model's errors.
        base: The base model's, on the same sets.

    Returns:
        Both means and their ratios.

    Raises:
        LatePhaseValueError: Other corruptions or other numbers of samples, or a base without any error on a kind.

    Example:
        >>> errors = CorruptionErrors("x", 9, {"fog": (0.1, 0.1, 0.2, 0.2, 0.4)}, 0.2, (0.1, 0.1, 0.2, 0.2, 0.4), None)
        >>> relative_errors(errors, errors).mce
        1.0
    """
    if _sets(model) != _sets(base):
        raise LatePhaseValueError(
            f"relative_errors: the model's errors are on {model.source} ({model.samples} samples, "
            f"{', '.join(sorted(model.errors))}, severities {model.severities}), the base's on {base.source} "
            f"({base.samples} samples, {', '.join(sorted(base.errors))}, severities {base.severities}); both must be "
            "on the same sets"
        )
    perfect = [kind for kind, errors in base.errors.items() if not sum(errors)]
    if perfect:
        raise LatePhaseValueError(
            f"relative_errors: the base makes no error on {', '.join(perfect)}, so nothing is relative to it; leave "
            "these kinds out, or use more samples"
        )
    ratios = {kind: sum(errors) / sum(base.errors[kind]) for kind, errors in model.errors.items()}
    beyond = _beyond_clean(model, base)
    return RelativeCorruptionErrors(
        sum(ratios.values()) / len(ratios), ratios, sum(beyond.values()) / len(beyond) if beyond else None, beyond
    )


def _sets(errors: CorruptionErrors) -> tuple[object, ...]:
    return errors.source, errors.samples, set(errors.errors), errors.severities


def _beyond_clean(model: CorruptionErrors, base: CorruptionErrors) -> dict[str, float]:
    if model.clean is None or base.clean is None:
        return {}
    lost = {kind: sum(errors) - len(errors) * base.clean for kind, errors in base.errors.items()}
    if min(lost.values()) <= 0:
        return {}
    return {kind: (sum(errors) - len(errors) * model.clean) / lost[kind] for kind, errors in model.errors.items()}
