"""Robustness to corrupted images: the library's own set, the published arrays, and the errors on both."""

from latephase.evaluation.corruptions.builtin import CORRUPTIONS, OWN_SET, builtin_sets, corrupt
from latephase.evaluation.corruptions.error import (
    CorruptionErrors,
    RelativeCorruptionErrors,
    corruption_errors,
    relative_errors,
)
from latephase.evaluation.corruptions.kind import SEVERITIES, Kind
from latephase.evaluation.corruptions.published import EXTRA_KINDS, PUBLISHED_KINDS, published_sets
from latephase.evaluation.corruptions.sets import CorruptedSet

__all__ = [
    "CORRUPTIONS",
    "EXTRA_KINDS",
    "OWN_SET",
    "PUBLISHED_KINDS",
    "SEVERITIES",
    "CorruptedSet",
    "CorruptionErrors",
    "Kind",
    "RelativeCorruptionErrors",
    "builtin_sets",
    "corrupt",
    "corruption_errors",
    "published_sets",
    "relative_errors",
]
