"""What a kind of corruption is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latephase.errors import LatePhaseValueError

SEVERITIES = 5

Image = np.ndarray
"""One image, float32 (channels, height, width), values 0 to 1."""


@dataclass(frozen=True)
class Kind:
    """One kind of corruption.

    Attributes:
        name: Its name.
        what: What it does, and in which unit its amounts are.
        amounts: How much of it there is at severities 1 to 5.
        apply: Maps an image, an amount and a random generator to the corrupted image, which may leave 0 to 1.
    """

    name: str
    what: str
    amounts: tuple[float, ...]
    apply: Callable[[Image, float, np.random.Generator], Image]

    def __post_init__(self) -> None:
        if len(self.amounts) != SEVERITIES:
            raise LatePhaseValueError(f"{self.name}: {len(self.amounts)} amounts; there are {SEVERITIES} severities")


def side(image: Image) -> int:
    """The shorter side of an image, in pixels: the unit of lengths, so that a kind looks alike at every resolution.

    Args:
        image: (channels, height, width).

    Returns:
        Pixels.
    """
    return int(min(image.shape[1:]))
