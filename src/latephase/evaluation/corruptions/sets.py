"""A corrupted data set: what built-in and published corruptions have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CorruptedSet:
    """One kind of corruption at one severity.

    Attributes:
        kind: Name of the corruption.
        severity: 1 to 5.
        batches: Pairs of uint8 images (N, 3, height, width) and class indices (N,); may be iterated over again.
    """

    kind: str
    severity: int
    batches: Iterable[tuple[Tensor, Tensor]]
